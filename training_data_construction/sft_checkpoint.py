"""Finishes a model that LLaMA-Factory exported: it keeps the weights and takes all other files from the base model.

    python -m training_data_construction.sft_checkpoint BASE EXPORTED OUT [--data DIR]

LoRA changes no tokenizer, template, processor or generation setting, but the export rewrites them: padding side,
offline flags, sampling, an Ollama file. So they are taken from BASE; then, if it is whole, EXPORTED becomes OUT. Its
prompt settings (``veason.json``) are those of the data set in DIR, else those of BASE.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from veason import files, prompt_settings
from veason.command import run_command
from veason.errors import DataError
from veason.family import family_of

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Names of a checkpoint's files beside its weights."""


def finish(base: str, exported: Path, out: Path, *, data: Path | None = None) -> None:
    """Replaces the settings of `exported` by those of `base` (folder or hub name), checks it, renames it to `out`.

    `data`: the folder that `build_sft` wrote. An incomplete export is a DataError.
    """
    if out.exists():
        raise DataError(f"{out} exists; remove it to export again")
    source = Path(base)
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        source = Path(snapshot_download(base, allow_patterns=list(SETTINGS)))
    for path in exported.iterdir():
        if not _is_models(path.name):
            path.unlink()
    for pattern in SETTINGS:
        for path in source.glob(pattern):
            if not _is_models(path.name):
                shutil.copyfile(path, exported / path.name)
    record = prompt_settings.read(data) if data else None
    if record is not None:
        prompt_settings.write(exported, record)
    for path in exported.iterdir():
        path.chmod(0o644)  # the weights come out readable by their owner only
    check(exported)
    exported.rename(out)


def _is_models(name: str) -> bool:
    """Checks if a file belongs to the weights: they, their index, their shapes."""
    return name == "config.json" or name.endswith((".safetensors", ".index.json"))


def check(folder: Path) -> None:
    """Raises a DataError unless the folder has all weights and a processor that GRPO, inference and vLLM can load."""
    from verl.engines.pretrained import problem

    if found := problem(folder):
        raise DataError(found)
    family_of(files.load_json(folder / "config.json")["model_type"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training_data_construction.sft_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="the base model of the training: a folder or a hub name")
    parser.add_argument("exported", type=Path, help="the output folder of `llamafactory-cli export`, which is renamed")
    parser.add_argument("out", type=Path, help="the finished checkpoint; must not exist")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder, for the prompt settings")
    args = parser.parse_args(argv)

    def run() -> None:
        finish(args.base, args.exported, args.out, data=args.data)
        print(f"{args.out}: merged checkpoint")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
