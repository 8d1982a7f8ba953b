"""What an SFT run is made from, checked before LLaMA-Factory starts: ``sft.sh`` calls it.

    python -m training_data_construction.sft_run start SETTINGS.yaml OUTPUT key=value …
    python -m training_data_construction.sft_run adapter BASE ADAPTER

``start`` refuses a base model that is not whole, since LLaMA-Factory would train on random values in its place. Then it
notes settings, data and base model in ``OUTPUT/sft_run.json``, or compares them with what is noted there: a run that
goes on, or is found finished, under other ones would be half of one and half of another. What `MAY_CHANGE` does so, and
the note of before stays as ``sft_run_000.json``. ``adapter`` checks what is to be merged.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from veason import atomic, files
from veason.command import run_command
from veason.errors import DataError

NAME = "sft_run.json"
PATHS = ("model_name_or_path", "dataset_dir", "output_dir")
"""Settings that are paths: what lies there is compared, or nothing, not where it lies."""
MAY_CHANGE = frozenset(
    {
        # how far
        "max_steps",
        "num_train_epochs",
        # what is logged and kept
        "logging_steps",
        "logging_first_step",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "plot_loss",
        "report_to",
        "run_name",
        # how the work is spread, which moves no number
        "preprocessing_num_workers",
        "dataloader_num_workers",
        "overwrite_cache",
        "ddp_timeout",
    }
)
"""Settings that a run may go on with otherwise than it began."""
BLOCKS, BLOCK = 16, 1 << 16
"""A file of weights is compared by its size and this many blocks of so many bytes, spread over it."""


def start(yaml_file: Path, output: Path, arguments: Sequence[str]) -> list[str]:
    """Check base model, settings and data of a run in `output`, and note them; one line for each change that may be.

    DataError for a base model or data set that cannot be used, and for changes that may not be.
    """
    from verl.engines import pretrained

    settings = read_settings(yaml_file, arguments)
    model, data = str(settings["model_name_or_path"]), Path(str(settings["dataset_dir"]))
    problem = pretrained.problem(model)
    if problem:
        raise DataError(problem)
    files.check_regular(data / "dataset_info.json", hint="the data folder is what build_sft wrote")
    parts = ("*.safetensors", *pretrained.SMALL)
    now = {
        "settings": {key: value for key, value in sorted(settings.items()) if key not in PATHS},
        "model": _prints(Path(model), parts) if Path(model).is_dir() else {"name": model},
        "data": _prints(data, ("*.json",)) | _pictures(data),
    }
    path, adapter = output / NAME, output / "adapter"
    notes = os.environ.get("NODE_RANK", "0") == "0"  # of several machines with one OUTPUT, one writes
    begun = (output / "merged").exists() or any(adapter.glob("checkpoint-*")) or _is_trained(adapter)
    if not path.exists():
        if notes:
            atomic.write_json(path, now)
        return [f"{adapter} does not say what it was made from; it is taken to be these settings"] if begun else []
    before = files.load_json(path)
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise DataError(f"{path}: no note of an SFT run; remove {output}, or choose another OUTPUT")
    changes = {kind: _changes(before[kind], now[kind]) for kind in now}
    refused = [f"{kind} {name} {told}" for kind in ("model", "data") for name, told in changes[kind].items()]
    refused += [f"{key} {told}" for key, told in changes["settings"].items() if key not in MAY_CHANGE]
    if refused and begun:
        more = f", and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise DataError(
            f"{output} was trained otherwise ({'; '.join(refused[:5])}{more}); give what it had, remove {output} to "
            "train anew, or choose another OUTPUT"
        )
    told = [f"{key} {change}" for key, change in changes["settings"].items()]
    if _is_trained(adapter):
        return [f"{adapter} is trained, so a change has no effect: {line}" for line in told]
    if (told or refused) and notes:
        number = len(list(output.glob(f"{path.stem}_*.json")))
        path.rename(path.with_name(f"{path.stem}_{number:03d}.json"))
        atomic.write_json(path, now)
    return [f"going on with a change: {line}" for line in told] if begun else []


def _is_trained(adapter: Path) -> bool:
    return (adapter / "train_results.json").exists()


def read_settings(yaml_file: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of a YAML file with those of ``key=value`` arguments in their place, the last of a key."""
    settings = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise DataError(f"{argument!r}: settings are given as key=value")
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            settings[key] = text
    return {key: _number(value) for key, value in settings.items()}


def check_adapter(base: str, adapter: Path) -> None:
    """DataError unless the folder holds a LoRA adapter, each of whose tensors has its place in the base model."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForImageTextToText

    from verl.engines import pretrained

    weights = adapter / "adapter_model.safetensors"
    for path in (adapter / pretrained.ADAPTER, weights):
        files.check_regular(path, hint="LLaMA-Factory writes it when training ends; is this the folder of an adapter?")
    try:
        found = pretrained.tensor_shapes([weights])
    except ValueError as error:
        raise DataError(f"{adapter}: {error}") from error
    files.load_json(adapter / pretrained.ADAPTER)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base))
        policy = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
    state = get_peft_model_state_dict(policy, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problem = pretrained.misfits(
        sorted(wanted.keys() - found.keys()),
        sorted(found.keys() - wanted.keys()),
        [
            f"{name} is {found[name]}, not {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ],
    )
    if problem:
        raise DataError(f"{adapter}: its {len(found)} weights do not fit {base}: {problem}; train it again")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """By name, what is other than it was."""
    return {
        name: f"was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _prints(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """By name, size and hash of files: a copy of them elsewhere has the same."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {path.name: _print(path) for path in found if path.name != "build.json"}  # it tells how data were made


def _print(path: Path) -> str:
    size = files.check_regular(path).st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()[:12]}"


def _pictures(data: Path) -> dict[str, str]:
    """One print of all pictures of the data set, by their names and sizes."""
    digest, count = hashlib.sha256(), 0
    for path in sorted((data / "images").rglob("*.png")):
        digest.update(f"{path.relative_to(data)}\0{path.stat().st_size}\n".encode())
        count += 1
    return {"images": f"{count} pictures, {digest.hexdigest()[:12]}"}


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as a text, 1.0e-4 as a number; they are the same setting."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training_data_construction.sft_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("start", help="before training")
    begin.add_argument("settings", type=Path, help="the YAML file")
    begin.add_argument("output", type=Path, help="the folder of adapter/ and merged/")
    begin.add_argument("arguments", nargs="*", metavar="key=value", help="as they are given to LLaMA-Factory")
    merge = commands.add_parser("adapter", help="before merging")
    merge.add_argument("base", help="the model that was trained from: folder or hub name")
    merge.add_argument("adapter", type=Path)
    args = parser.parse_args(argv)

    def run() -> None:
        if args.command == "adapter":
            check_adapter(args.base, args.adapter)
        else:
            for line in start(args.settings, args.output, args.arguments):
                print(line, flush=True)

    return run_command(run)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
