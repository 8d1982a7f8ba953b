"""Finish a model that LLaMA-Factory exported: its weights, and everything else as the base model has it.

    python -m training_data_construction.sft_checkpoint BASE EXPORTED OUT

LoRA changes no tokenizer, template, processor or generation setting, but the export rewrites them: padding side,
offline flags, sampling, an Ollama file. So they are taken from BASE; then, if it loads, EXPORTED becomes OUT.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from veason.errors import DataError
from veason.family import family_of

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Names of a checkpoint's files beside its weights."""


def finish(base: str, exported: Path, out: Path) -> None:
    """Replace the settings of `exported` by those of `base` (folder or hub name), check it, and rename it to `out`."""
    if out.exists():
        raise DataError(f"{out} exists; remove it to export again")
    source = _folder(base)
    for path in exported.iterdir():
        if not _is_models(path.name):
            path.unlink()
    for pattern in SETTINGS:
        for path in source.glob(pattern):
            if not _is_models(path.name):
                shutil.copyfile(path, exported / path.name)
    for path in exported.iterdir():
        path.chmod(0o644)  # the weights come out readable by their owner only
    check(exported)
    exported.rename(out)


def _is_models(name: str) -> bool:
    """Whether a file belongs to the weights: they, their index, their shapes."""
    return name == "config.json" or name.endswith((".safetensors", ".index.json"))


def _folder(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base, allow_patterns=list(SETTINGS)))


def check(folder: Path) -> None:
    """DataError unless the folder has weights and a processor that GRPO, inference and vLLM can load."""
    from transformers import AutoConfig, AutoProcessor

    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: no weights in it; the export failed")
    try:
        family_of(AutoConfig.from_pretrained(folder).model_type)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be loaded as a checkpoint with its processor: {error}") from error
    if not getattr(processor, "chat_template", None):
        raise DataError(f"{folder}: its processor has no chat template; the base model's folder must hold one")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training_data_construction.sft_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="the model that was trained from: folder or hub name")
    parser.add_argument("exported", type=Path, help="what `llamafactory-cli export` wrote; renamed")
    parser.add_argument("out", type=Path, help="the finished checkpoint; must not exist")
    args = parser.parse_args(argv)
    try:
        finish(args.base, args.exported, args.out)
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{args.out}: merged checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
