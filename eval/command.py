"""The part that the commands of all evaluators share: options, writing and exit status."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from eval.results import Missing, Problem, Results
from veason import atomic
from veason.command import run_command

_log = logging.getLogger(__name__)


def parser(module: str, doc: str, *, gt: str, pred: str) -> argparse.ArgumentParser:
    """Makes a parser with the options of every evaluator. doc: the module's; gt, pred: the help of the two folders."""
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
        help="a missing prediction scores zero, is left out of the means, ends the run, or counts as in the "
        "benchmark's own script (default: zero)",
    )
    made.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="number of processes; default: cores"
    )
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
        return log_problems(results.errors)

    return run_command(body)


def log_problems(problems: Sequence[Problem], *, listed: int | None = None) -> int:
    """Logs each problem as an error, at most `listed` of them; returns the exit status: 2 if there is any, else 0."""
    for problem in problems[:listed]:
        _log.error("%s: %s", problem.sample, problem.reason)
    if listed is not None and len(problems) > listed:
        _log.error("… and %d more", len(problems) - listed)
    return 2 if problems else 0
