"""What the evaluators' commands share: the options, how they write, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from eval.results import Missing, Problem, Results
from veason import atomic
from veason.command import run_command
from veason.safe_text import printable


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
        help="a missing prediction scores zero, is left out of the means, ends the run, or is what the benchmark's own "
        "script makes of it (default: zero)",
    )
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    return made


def run(evaluate: Callable[..., Results], args: argparse.Namespace) -> int:
    """Evaluates, writes and prints; returns the exit status: 0, or 2 for anything that a user has to put right.

    Every option of `parser`, and every one added to it, is a keyword argument of `evaluate` but for ``--out``. That
    folder is locked meanwhile, so that no two evaluations put their files into one.
    """
    options = {name: value for name, value in vars(args).items() if name not in ("gt", "pred", "out")}

    def body() -> int:
        with atomic.Lock(args.out / ".lock"):
            for name in ("results.csv", "results.json"):
                atomic.remove_leftovers(args.out / name)
            results = evaluate(args.gt, args.pred, **options)
            results.write(args.out)
        print(results.table())
        return print_problems(results.errors)

    return run_command(body)


def print_problems(problems: Sequence[Problem], *, listed: int | None = None) -> int:
    """Name each problem on stderr, at most `listed` of them; 2 if there is any, else 0."""
    for problem in problems[:listed]:
        print(f"error: {printable(problem.sample)}: {printable(problem.reason)}", file=sys.stderr)
    if listed is not None and len(problems) > listed:
        print(f"error: … and {len(problems) - listed} more", file=sys.stderr)
    return 2 if problems else 0
