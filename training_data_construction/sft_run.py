"""Checks the inputs of an SFT run before LLaMA-Factory starts; ``sft.sh`` calls it.

    python -m training_data_construction.sft_run start SETTINGS.yaml OUTPUT key=value …
    python -m training_data_construction.sft_run adapter BASE ADAPTER

``start`` refuses a base model that is not whole, since LLaMA-Factory would replace missing weights by random values. It
notes settings, data and base model in ``OUTPUT/sft_run.json``, or compares them with that note: a run must end with the
settings it began with. Only the settings in `MAY_CHANGE` may differ, and the earlier note stays as
``sft_run_000.json``. ``adapter`` checks an adapter before it is merged.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from veason import atomic, files
from veason.command import run_command
from veason.errors import DataError

logger = logging.getLogger("training_data_construction.sft_run")  # also when run by `python -m`

NAME = "sft_run.json"
PATHS = ("model_name_or_path", "dataset_dir", "output_dir")
"""Settings that are paths; they may differ, and the files at the first two are compared instead."""
MAY_CHANGE = frozenset(
    {
        # length of the run
        "max_steps",
        "num_train_epochs",
        # logging and checkpoints
        "logging_steps",
        "logging_first_step",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "plot_loss",
        "report_to",
        "run_name",
        # distribution of the work, which changes no number
        "preprocessing_num_workers",
        "dataloader_num_workers",
        "overwrite_cache",
        "ddp_timeout",
    }
)
"""Settings that may change when a run is resumed."""
BLOCKS, BLOCK = 16, 1 << 16
"""A file of weights is compared by its size and this many blocks of so many bytes, spread over it."""


def start(yaml_file: Path, output: Path, arguments: Sequence[str]) -> list[str]:
    """Checks base model, settings and data of a run in `output` and notes them; returns a line per permitted change.

    A base model or data set that cannot be used is a DataError, and so is any other change.
    """
    from verl.engines import pretrained

    settings = read_settings(yaml_file, arguments)
    model, data = str(settings["model_name_or_path"]), Path(str(settings["dataset_dir"]))
    problem = pretrained.problem(model)
    if problem:
        raise DataError(problem)
    files.check_regular(data / "dataset_info.json", hint="the data folder is what build_sft wrote")
    pictures, digest = sorted((data / "images").rglob("*.png")), hashlib.sha256()  # of their names and sizes
    for picture in pictures:
        digest.update(f"{picture.relative_to(data)}\0{picture.stat().st_size}\n".encode())
    parts = ("*.safetensors", *pretrained.SMALL)
    now = {
        "settings": {key: value for key, value in sorted(settings.items()) if key not in PATHS},
        "model": _fingerprints(Path(model), parts) if Path(model).is_dir() else {"name": model},
        "data": _fingerprints(data, ("*.json",)) | {"images": f"{len(pictures)} pictures, {digest.hexdigest()[:12]}"},
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
        raise DataError(f"{path}: not the record of an SFT run; remove {output}, or choose another OUTPUT")
    changes = {kind: _changes(before[kind], now[kind]) for kind in now}
    refused = [f"{kind} {name} {change}" for kind in ("model", "data") for name, change in changes[kind].items()]
    refused += [f"{key} {change}" for key, change in changes["settings"].items() if key not in MAY_CHANGE]
    if refused and begun:
        more = f", and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise DataError(
            f"{output} was trained with other settings ({'; '.join(refused[:5])}{more}); restore its "
            f"settings, remove {output} to train anew, or choose another OUTPUT"
        )
    changed = [f"{key} {change}" for key, change in changes["settings"].items()]
    if _is_trained(adapter):
        return [f"{adapter} is trained, so a change has no effect: {line}" for line in changed]
    if (changed or refused) and notes:
        number = len(list(output.glob(f"{path.stem}_*.json")))
        path.rename(path.with_name(f"{path.stem}_{number:03d}.json"))
        atomic.write_json(path, now)
    return [f"going on with a change: {line}" for line in changed] if begun else []


def _is_trained(adapter: Path) -> bool:
    return (adapter / "train_results.json").exists()


def read_settings(yaml_file: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Reads the settings of a YAML file; ``key=value`` arguments replace them, the last one of a key counts."""
    settings = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise DataError(f"{argument!r}: settings are given as key=value")
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            settings[key] = text
    for key, value in settings.items():
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                settings[key] = float(value)  # YAML reads 1e-4 as a text, 1.0e-4 as a number: the same setting
    return settings


def check_adapter(base: str, adapter: Path) -> None:
    """Raises a DataError unless the folder holds a LoRA adapter whose tensors all fit the base model."""
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
    """Describes each differing value, by name."""
    return {
        name: f"was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _fingerprints(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Returns size and hash of files by name; a copy of them elsewhere gives the same."""
    prints = {}
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.name == "build.json":
            continue  # it notes how the data were made
        size = files.check_regular(path).st_size
        digest = hashlib.sha256()
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(file.read())
            else:
                for number in range(BLOCKS):
                    file.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
        prints[path.name] = f"{size} bytes, {digest.hexdigest()[:12]}"
    return prints


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training_data_construction.sft_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("start", help="check the inputs before training")
    begin.add_argument("settings", type=Path, help="the YAML file")
    begin.add_argument("output", type=Path, help="the folder of adapter/ and merged/")
    begin.add_argument("arguments", nargs="*", metavar="key=value", help="the arguments of LLaMA-Factory")
    merge = commands.add_parser("adapter", help="check an adapter before it is merged")
    merge.add_argument("base", help="the base model of the training: a folder or a hub name")
    merge.add_argument("adapter", type=Path, help="the folder of the adapter")
    args = parser.parse_args(argv)

    def run() -> None:
        if args.command == "adapter":
            check_adapter(args.base, args.adapter)
        else:
            for line in start(args.settings, args.output, args.arguments):
                logger.info("%s", line)

    return run_command(run)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
