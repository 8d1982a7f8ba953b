"""What the evaluators' commands share: the options, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from eval.results import Missing, Problem
from veason.errors import DataError


class Scored(Protocol):
    """Results of any benchmark."""

    @property
    def errors(self) -> tuple[Problem, ...]: ...


def parser(module: str, doc: str, *, gt: str, pred: str) -> argparse.ArgumentParser:
    """A parser with the options of every evaluator. doc: the module's; gt, pred: what the two folders are."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--gt", type=Path, required=True, metavar="DIR", help=gt)
    made.add_argument("--pred", type=Path, required=True, metavar="PATH", help=pred)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results.csv and results.json")
    made.add_argument("--meta", type=Path, metavar="FILE", help="another expression file, such as a predicted subset")
    made.add_argument(
        "--missing",
        choices=get_args(Missing),
        default="zero",
        help="a missing prediction scores zero, is left out of the means, or ends the run (default: zero)",
    )
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    return made


def run(
    evaluate: Callable[[], Any], *, write: Callable[[Any, Path], None], table: Callable[[Any], str], out: Path
) -> int:
    """Evaluate, write, print; the exit status: 0, or 2 for anything that a user has to put right."""
    try:
        results = evaluate()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(results, out)
    print(table(results))
    return _list_errors(results.errors)


def _list_errors(errors: Sequence[Problem]) -> int:
    for problem in errors:
        print(f"error: {problem.sample}: {problem.reason}", file=sys.stderr)
    return 2 if errors else 0
