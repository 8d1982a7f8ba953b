"""The top of a report: scores, problems, times, what was not scored, and the settings it all goes with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.revos import GROUPS
from inference import report_page as page
from inference.report_run import Run
from inference.report_scores import OVERALL, Scores
from veason.answer import REPAIRS


def summarise(runs: Sequence[Run], scores: Sequence[Scores | None], *, cards: int | None) -> page.Summary:
    """What stands above the cards, which are of the first run: its first `cards`, or all."""
    run, found = runs[0], scores[0]
    problems = run.problems()
    count = problems.total()
    sections = list(_warnings(run, found, count))
    if len(runs) > 1:
        sections.append(page.section("Runs compared", _comparison(runs, scores), wide=True))
    if found is not None:
        sections.append(page.section("Scores", _scores(found)))
    sections.append(f"<div>{_problems(run)}{_seconds(run)}</div>")
    sections.append(page.facts("Settings and versions", {**run.settings, **run.versions}))
    named = (run.settings.get(name) for name in ("dataset", "split", "policy", "model", "tracker"))
    limited = [f"the first {cards} shown"] if cards is not None and cards < count else []
    return page.Summary(
        title=run.path.resolve().name,
        subtitle=" · ".join([*(str(v) for v in named if v is not None), f"{count} expressions", *limited]),
        sections=sections,
        types=list(GROUPS) if run.settings.get("dataset") == "revos" else [],
        problems=problems,
        scored=found is not None,
    )


def _warnings(run: Run, scores: Scores | None, count: int) -> Iterator[str]:
    planned = run.settings.get("samples")
    if isinstance(planned, int) and planned > count:
        yield page.warning(f"The run is not finished: {count} of {planned} expressions are predicted.")
    if scores is None:
        return
    if scores.missing:
        effect = "left out" if scores.missing_policy == "skip" else "scored as zero"
        items = [f"{p.sample}: {p.reason}" for p in scores.missing]
        yield page.warning(f"Expressions of the split without a complete prediction, {effect}: {len(items)}", items)
    if scores.errors:
        items = [f"{p.sample}: {p.reason}" for p in scores.errors]
        yield page.warning(f"Expressions that could not be scored and are in no mean: {len(items)}", items)


def _scores(scores: Scores) -> str:
    """The means by group, and how they came about."""
    rows = [(name, count, *means) for name, (count, means) in scores.means.items()]
    said = "; ".join(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in scores.protocol.items())
    table = page.table(("", "n", *scores.columns), rows, lead=OVERALL)
    return table + page.note(f"In per cent. Protocol: {said}.")


def _words(value: object) -> str:
    return ", ".join(f"{k} in {n}" for k, n in value.items()) if isinstance(value, dict) else str(value)


def _problems(run: Run) -> str:
    problems = run.problems()
    count = problems.total()
    listed = [("none", problems[None]), *((name, n) for name, n in problems.most_common() if name is not None)]
    rows = [(name, n, f"{100 * n / count:.1f} %" if count else None) for name, n in listed]
    made = page.section("Problems of the replies", page.table(("", "expressions", "share"), rows))
    repairs = [(REPAIRS.get(name, name), n) for name, n in run.repairs().most_common()]
    if repairs:
        said = page.note("Read all the same, and counted above as what they are to the strict reading.")
        made += page.section("Read leniently, where", page.table(("", "expressions"), repairs) + said)
    return made


def _seconds(run: Run) -> str:
    seconds = run.seconds()
    if not seconds:
        return ""
    rows = [(stage, float(mean)) for stage, mean in seconds.items()]
    said = page.note("Stages run beside each other, so their sum can be more than the time that passed.")
    return page.section("Seconds per expression", page.table(("stage", "mean"), rows) + said)


def _comparison(runs: Sequence[Run], scores: Sequence[Scores | None]) -> str:
    """One row per run."""
    header = ["run", "expressions", "without a problem", "seconds each"]
    compared = _compared(scores[0]) if scores[0] else []
    header += [f"{column} {group}" for group, column in compared]
    rows = []
    for run, found in zip(runs, scores, strict=True):
        problems, seconds = run.problems(), run.seconds()
        row: list[page.Cell] = [run.path.resolve().name, problems.total(), problems[None]]
        row.append(float(sum(seconds.values())) if seconds else None)
        row += [_mean(found, group, column) for group, column in compared]
        rows.append(row)
    return page.table(header, rows) + page.note("The cards below are of the first run.")


def _compared(scores: Scores) -> list[tuple[str, str]]:
    """J&F of each group of expressions with a target, and R of all if there is one."""
    groups = [(name, "J&F") for name in scores.means if name != "absent"]
    return [*groups, *([(OVERALL, "R")] if "R" in scores.columns else [])]


def _mean(scores: Scores, group: str, column: str) -> float | None:
    """None where a run has no such number: it is of another benchmark, say."""
    if group not in scores.means or column not in scores.columns:
        return None
    return scores.means[group][1][scores.columns.index(column)]
