"""Draws a subset of ReVOS training expressions with the mix of the whole: by question type and number of objects.

    python training_data_construction/data_sampling.py --input_json ROOT/meta_expressions_train_.json \\
        --output_json ROOT/meta_expressions_train_select.json --target_size 10000

The output has the schema of the input; the same seed gives the same bytes. The quota of a cell of the mix is
share of its type x share of its number of objects x target size. If a cell holds less, the rest is drawn from the
others at random.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from veason import atomic
from veason.command import run_command
from veason.datasets import open_dataset, scored
from veason.datasets.base import load_json
from veason.errors import DataError
from veason.exclude import read_exclude
from veason.tables import aligned
from veason.types import VideoSample

logger = logging.getLogger("training_data_construction.data_sampling")  # also when run as a file

Cell = tuple[int, str]
"""(type id, number of objects): ``1``, ``>1``, or ``0`` where the target is absent."""

TYPES = ("referring", "reasoning", "absent")
ABSENT = 2


def cell_of(sample: VideoSample) -> Cell | None:
    """Returns the cell of an expression; None for a type with a target whose expression names no object."""
    if sample.type_id == ABSENT:
        return (ABSENT, "0")
    if not sample.obj_ids:
        return None
    return (sample.type_id or 0, "1" if len(sample.obj_ids) == 1 else ">1")


def quotas(available: Mapping[Cell, int], target: int) -> dict[Cell, int]:
    """Returns the quota of each cell: ``target`` x share of its type x share of its number of objects, rounded.

    The shares are those of the two margins, each counted over the whole pool; absent targets have no number of objects,
    so their quota is by their type alone. Largest remainders decide the rounding, so that quotas add up to `target`.
    """
    types, numbers = Counter[int](), Counter[str]()
    for (type_id, number), count in available.items():
        types[type_id] += count
        numbers[number] += count
    total, present = types.total(), types.total() - types[ABSENT]
    parts: dict[Cell, tuple[int, int]] = {}  # whole expressions, and the rest in units of 1 / (total * present)
    for type_id in sorted(types):
        for number in ("0",) if type_id == ABSENT else ("1", ">1"):
            exact = target * types[type_id] * (present if type_id == ABSENT else numbers[number])
            parts[type_id, number] = divmod(exact, total * present) if present else (target, 0)
    short = target - sum(whole for whole, _ in parts.values())
    rounded_up = sorted(parts, key=lambda cell: (-parts[cell][1], cell))[:short]
    return {cell: whole + (cell in rounded_up) for cell, (whole, _) in parts.items()}


def draw(pool: Mapping[Cell, Sequence[str]], target: int, *, seed: int) -> dict[Cell, list[str]]:
    """Draws `target` keys from the pool, by cell: each cell's quota, then at random for quotas that were not filled."""
    size = sum(map(len, pool.values()))
    if not 1 <= target <= size:
        raise DataError(f"--target_size is {target}, the pool holds {size} expressions: it must be from 1 to {size}")
    rng = Random(f"data_sampling/{seed}")
    wanted = quotas({cell: len(keys) for cell, keys in pool.items()}, target)
    taken = {cell: rng.sample(keys, min(wanted[cell], len(keys))) for cell, keys in sorted(pool.items())}
    chosen = {key for keys in taken.values() for key in keys}
    rest = [(cell, key) for cell, keys in sorted(pool.items()) for key in keys if key not in chosen]
    for cell, key in rng.sample(rest, target - len(chosen)):
        taken[cell].append(key)
    return taken


def subset(document: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Reduces the meta document to the expressions `keys` (``video/exp_id``); videos without any are left out."""
    videos = {}
    for video, entry in document["videos"].items():
        kept = {exp_id: exp for exp_id, exp in entry["expressions"].items() if f"{video}/{exp_id}" in keys}
        if kept:
            videos[video] = {**entry, "expressions": kept}
    return {**document, "videos": videos}


def fill_pool(
    samples: Sequence[VideoSample], *, include_absent: bool, exclude: frozenset[str]
) -> tuple[dict[Cell, list[str]], Counter[str]]:
    """Returns the keys that may be drawn, by cell, and the number of those left out, by reason."""
    pool: dict[Cell, list[str]] = {}
    left_out = Counter[str]()
    for sample in samples:
        cell = cell_of(sample)
        if sample.key in exclude:
            left_out["in the exclude file"] += 1
        elif cell is None:
            left_out["of a type with a target, but without an object"] += 1
        elif cell[0] == ABSENT and not include_absent:
            left_out["without a target (--include-absent takes them in)"] += 1
        else:
            pool.setdefault(cell, []).append(sample.key)
    return pool, left_out


def table(pool: Mapping[Cell, Sequence[str]], taken: Mapping[Cell, Sequence[str]]) -> str:
    """Formats quota, available and taken per cell, in expressions and in per cent of the target size."""
    target = sum(map(len, taken.values()))
    wanted = quotas({cell: len(keys) for cell, keys in pool.items()}, target)
    names: list[str] = []
    rows: list[tuple[float, ...]] = []
    for cell in sorted(wanted):
        name = TYPES[cell[0]] if cell[0] == ABSENT else f"{TYPES[cell[0]]}, {cell[1]} object{'s' * (cell[1] == '>1')}"
        counts = (wanted[cell], len(pool.get(cell, ())), len(taken.get(cell, ())))
        names.append(name)
        rows.append((*counts, 100 * counts[0] / target, 100 * counts[2] / target))
    sums = tuple(sum(column) for column in zip(*rows, strict=True))
    lines = [(name, *row) for name, row in zip([*names, "total"], [*rows, sums], strict=True)]
    return aligned(("", "wanted", "available", "taken", "wanted %", "taken %"), lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="data_sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input_json", "--input-json", type=Path, required=True, metavar="FILE", help="meta_expressions_train_.json"
    )
    parser.add_argument(
        "--output_json",
        "--output-json",
        type=Path,
        required=True,
        metavar="FILE",
        help="output file with the same schema",
    )
    parser.add_argument(
        "--target_size",
        "--target-size",
        type=int,
        default=10_000,
        metavar="N",
        help="number of expressions (default: 10000)",
    )
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument(
        "--include-absent", action="store_true", help="also draw expressions without a target, at their natural share"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="samples to leave out, one video/exp_id per line, as `python -m grpo_reward.task` lists them",
    )
    parser.add_argument(scored.OPTION, action="store_true", help="also draw samples that a benchmark scores")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: sample_file(args))


def sample_file(args: argparse.Namespace) -> None:
    source, output = args.input_json, args.output_json
    if output.resolve() == source.resolve():
        raise DataError(f"{output}: --output_json would replace --input_json; name another file")
    document = load_json(source)
    samples = list(open_dataset("revos", source.parent, split="train", meta=source))  # checks every name and field
    for line in scored.check_file(source, roots=[source.parent], allowed=args.allow_scored_split):
        logger.warning("%s", line)
    exclude = read_exclude(args.exclude) if args.exclude else frozenset()
    pool, left_out = fill_pool(samples, include_absent=args.include_absent, exclude=exclude)
    taken = draw(pool, args.target_size, seed=args.seed)
    keys = {key for keys in taken.values() for key in keys}
    with atomic.Lock(output.with_name(f".{output.name}.lock")):
        atomic.remove_leftovers(output)
        # ASCII: an expression may hold what UTF-8 cannot
        atomic.write_bytes(output, (json.dumps(subset(document, keys)) + "\n").encode("ascii"))
    print(table(pool, taken))
    for reason, count in left_out.items():
        print(f"left out: {count} {reason}")
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
