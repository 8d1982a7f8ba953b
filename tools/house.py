"""Measures how the code is divided: lines, small files, helpers with one caller, and what an entry point imports.

    python tools/house.py            # this tree
    python tools/house.py OTHER      # another checkout, such as an earlier commit, to compare with
    python tools/house.py --part verl --list

A private function counts as a helper with one caller if its name occurs once in its file besides its definition. The
import closure of an entry point is every module of the project that it, or what it imports, names in any import
statement, those within functions included; empty ``__init__.py`` files do not count.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PARTS = {
    "product": ("veason", "verl", "grpo_reward", "training_data_construction", "inference", "eval"),
    "beside it": ("demo", "benchmarks", "tools"),
}
SMALL = 60
"""Lines below which a file counts as small; ``__init__.py`` and ``__main__.py`` never do."""
ENTRY_POINTS = {
    "training (verl.trainer.main, task, reward)": ("verl.trainer.main", "grpo_reward.task", "grpo_reward.reward_score"),
    "inference (inference.predict)": ("inference.predict",),
}


class Helper(NamedTuple):
    """A private function that has one caller."""

    path: Path
    name: str
    lines: int


def helpers(path: Path) -> Iterator[Helper]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    uses: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            uses[node.id] += 1
        elif isinstance(node, ast.Attribute):
            uses[node.attr] += 1
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            private = node.name.startswith("_") and not node.name.startswith("__")
            if private and uses[node.name] <= 1 and node.end_lineno is not None:
                yield Helper(path, node.name, node.end_lineno - node.lineno + 1)


def closure(root: Path, entry_points: Iterable[str]) -> set[str]:
    """The modules of the project below `root` that the entry points import, directly or through others."""

    def file_of(module: str) -> Path | None:
        path = root.joinpath(*module.split("."))
        found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return found if found.is_file() else None

    seen: set[str] = set()
    todo = list(entry_points)
    while todo:
        module = todo.pop()
        path = file_of(module)
        if path is None or module in seen:
            continue
        seen.add(module)
        todo.append(module.rpartition(".")[0] or module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {module for module in seen if (path := file_of(module)) is not None and path.stat().st_size}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent, help="default: this tree")
    parser.add_argument("--part", action="append", help="only this package (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the helpers with one caller")
    args = parser.parse_args(argv)
    print(f"{'part':<26} {'files':>5} {'lines':>7} {'< 60 lines':>10} {'one caller':>10} {'per 1,000':>9}")
    lines_of = {}
    for group, parts in PARTS.items():
        sums = [0, 0, 0, 0]
        for part in parts:
            if args.part and part not in args.part:
                continue
            paths = sorted((args.root / part).rglob("*.py"))
            lines = {path: path.read_text(encoding="utf-8").count("\n") for path in paths}
            small = [p for p, n in lines.items() if n < SMALL and p.name not in ("__init__.py", "__main__.py")]
            found = [helper for path in paths for helper in helpers(path)]
            row = [len(paths), sum(lines.values()), len(small), len(found)]
            sums = [a + b for a, b in zip(sums, row, strict=True)]
            print(_row(part, row))
            if args.list:
                for helper in found:
                    print(f"    {helper.path.relative_to(args.root)}  {helper.name}  {helper.lines}")
        print(_row(group, sums))
        lines_of[group] = sums[1]
    if not args.part:
        product, beside = lines_of.values()
        print(f"\nproduct : beside it = {product / max(beside, 1):.2f} : 1 (lines)")
        for name, entry_points in ENTRY_POINTS.items():
            print(f"import closure of {name}: {len(closure(args.root, entry_points))} modules")
    return 0


def _row(name: str, row: Sequence[int]) -> str:
    files, lines, small, one_caller = row
    return f"{name:<26} {files:>5} {lines:>7,} {small:>10} {one_caller:>10} {1000 * one_caller / max(lines, 1):>9.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
