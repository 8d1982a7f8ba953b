"""One page to look at a run: scores, problems, times, and a card per expression with its frames drawn.

    python -m inference.report runs/veason-3b --gt ROOT

writes ``runs/veason-3b/report.html``, a single file that needs no network. Predictions are filled, truth is outlined;
cards can be sorted and filtered. The scores are those of ``python -m eval.revos``, computed when the page is made.
Further run folders are compared in a table; the cards are of the first. Without ``--gt`` there are no scores and no
truth, and the videos are looked for where the run found them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from eval import revos
from inference import options
from inference import report_page as page
from inference.report_cards import CardMaker
from inference.report_run import Run, open_run
from veason import datasets
from veason.errors import DataError

GROUPS = ("referring", "reasoning", "overall", "absent")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder; cards are made of the first")
    parser.add_argument("--gt", type=Path, metavar="ROOT", help="data set with the truth; without it nothing is scored")
    parser.add_argument("--split", help="default: the split of the run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the (first) run folder")
    parser.add_argument("--limit", type=int, metavar="N", help="cards for the first N expressions; scores are of all")
    parser.add_argument("--frames-per-card", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--missing",
        choices=("zero", "skip", "error"),
        default="zero",
        help="expressions of the split without a prediction (default: %(default)s)",
    )
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if not where the run had it"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that score; default: cores"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.frames_per_card < 1 or args.workers < 1 or (args.limit is not None and args.limit < 1):
        raise DataError("--frames-per-card, --workers and --limit must be at least 1")
    runs = [open_run(path) for path in args.runs]
    dataset = open_data(runs[0], args)
    results = [_evaluate(run, args) for run in runs] if args.gt else [None] * len(runs)
    cards = _cards(runs[0], dataset, results[0], args)
    output = args.output or runs[0].path / "report.html"
    write_stream(output, page.page(_summary(runs, results), cards))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def open_data(run: Run, args: argparse.Namespace) -> datasets.Dataset:
    """The data set that a run was made of, below ``--gt`` or where the run found it."""
    settings = run.settings
    wanted = {name: settings.get(name) for name in ("dataset", "data_root", "split")}
    if not all(isinstance(value, str) for value in wanted.values()):
        raise DataError(f"{run.path / 'run.json'}: settings must name {', '.join(wanted)}, found {wanted}")
    images = args.image_root or settings.get("image_root")
    meta = settings.get("meta")
    return datasets.open_dataset(
        wanted["dataset"],
        args.gt or wanted["data_root"],
        split=args.split or wanted["split"],
        image_root=images,
        meta=meta if meta is None or Path(meta).is_file() else None,  # a subset that is gone: all of the split
    )


def _evaluate(run: Run, args: argparse.Namespace) -> revos.Results:
    name, split = run.settings.get("dataset"), args.split or run.settings.get("split")
    if name != "revos":
        raise DataError(f"{run.path}: only ReVOS runs can be scored here, this one is of {name!r}; leave out --gt")
    return revos.evaluate(args.gt, run.path, split=split, missing=args.missing, workers=args.workers)


def _cards(
    run: Run, dataset: datasets.Dataset, results: revos.Results | None, args: argparse.Namespace
) -> Iterator[str]:
    """The HTML of the cards, each with the frames that no card before it has shown."""
    maker = CardMaker(run, dataset, results, frames_per_card=args.frames_per_card)
    total = min(sum(run.problems().values()), args.limit or sys.maxsize)
    with tqdm(total=total, unit="exp", disable=None, desc="cards") as bar:
        for number, outcome in enumerate(run.outcomes()):
            if number == total:
                return
            made, rules = maker.make(number, outcome)
            yield f"<style>{rules}</style>\n" if rules else ""
            yield page.card(made)
            bar.update()


def _summary(runs: Sequence[Run], results: Sequence[revos.Results | None]) -> page.Summary:
    run, result = runs[0], results[0]
    problems, seconds = run.problems(), run.seconds()
    count = problems.total()
    sections = list(_warnings(run, result, count))
    if len(runs) > 1:
        sections.append(page.section("Runs compared", _comparison(runs, results), wide=True))
    if result is not None:
        sections.append(page.section("Scores", _scores(result)))
    listed = [("none", problems[None]), *((name, n) for name, n in problems.most_common() if name is not None)]
    rows = [(name, n, f"{100 * n / count:.1f} %" if count else None) for name, n in listed]
    times = [*((stage, float(value)) for stage, value in seconds.items())]
    side = page.section("Problems of the replies", page.table(("", "expressions", "share"), rows))
    if times:
        inner = page.table(("stage", "mean s"), times) + page.note(
            "Stages run beside each other: they add up to more than the time taken."
        )
        side += page.section("Seconds per expression", inner)
    sections.append(f"<div>{side}</div>")
    sections.append(page.facts("Settings and versions", {**run.settings, **run.versions}))
    named = (run.settings.get(name) for name in ("dataset", "split", "policy", "model", "tracker"))
    return page.Summary(
        title=run.path.resolve().name,
        subtitle=" · ".join([*(str(value) for value in named if value is not None), f"{count} expressions"]),
        sections=sections,
        types=[name for name in page.TYPES.values() if result is None or result.expected.get(name)],
        problems=problems,
        scored=result is not None,
    )


def _warnings(run: Run, result: revos.Results | None, count: int) -> Iterator[str]:
    planned = run.settings.get("samples")
    if isinstance(planned, int) and planned > count:
        yield page.warning(f"The run is not finished: {count} of {planned} expressions are predicted.")
    if result is None:
        return
    if result.missing:
        effect = "left out" if result.missing_policy == "skip" else "scored as zero"
        items = [f"{p.sample}: {p.reason}" for p in result.missing]
        yield page.warning(f"{len(items)} expressions of the split have no complete prediction, {effect}:", items)
    if result.errors:
        items = [f"{p.sample}: {p.reason}" for p in result.errors]
        yield page.warning(f"{len(items)} expressions could not be scored and are in no mean:", items)


def _scores(result: revos.Results) -> str:
    """The four groups, and how they came about."""
    by_type = result.counts()["by_type"]
    scored = {name: count["scored"] for name, count in by_type.items()}
    scored["overall"] = scored["referring"] + scored["reasoning"]
    rows = []
    for name in GROUPS:
        means = result.group(name)
        rows.append((name, scored[name], means.jf, means.j, means.f, means.a, means.r))
    protocol = result.summary()["protocol"]
    said = "; ".join(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in protocol.items())
    table = page.table(("", "n", "J&F", "J", "F", "A", "R"), rows, lead="overall")
    return table + page.note(f"In per cent. Protocol: {said}.")


def _words(value: object) -> str:
    return ", ".join(f"{k} in {n}" for k, n in value.items()) if isinstance(value, dict) else str(value)


def _comparison(runs: Sequence[Run], results: Sequence[revos.Results | None]) -> str:
    """One row per run; the cards are of the first."""
    header = ["run", "expressions", "without a problem", "s per expression"]
    if results[0] is not None:
        header += ["J&F referring", "J&F reasoning", "J&F overall", "R overall"]
    rows = []
    for run, result in zip(runs, results, strict=True):
        problems, seconds = run.problems(), run.seconds()
        row: list[page.Cell] = [run.path.resolve().name, problems.total(), problems[None]]
        row.append(float(sum(seconds.values())) if seconds else None)
        if result is not None:
            row += [result.group(name).jf for name in ("referring", "reasoning", "overall")]
            row.append(result.group("overall").r)
        rows.append(row)
    return page.table(header, rows) + page.note("The cards below are of the first run.")


def write_stream(path: Path, parts: Iterable[str]) -> None:
    """Write text piece by piece; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(parts)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    options.run_command(main)
