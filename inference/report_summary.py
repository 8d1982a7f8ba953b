"""The top of a report: scores, problems, times, what was not scored, and the settings it all goes with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.revos import GROUPS, Results
from inference import report_page as page
from inference.report_run import Run

MEANS = ("referring", "reasoning", "overall", "absent")


def summarise(runs: Sequence[Run], results: Sequence[Results | None], *, cards: int | None) -> page.Summary:
    """What stands above the cards, which are of the first run: its first `cards`, or all."""
    run, result = runs[0], results[0]
    problems = run.problems()
    count = problems.total()
    sections = list(_warnings(run, result, count))
    if len(runs) > 1:
        sections.append(page.section("Runs compared", _comparison(runs, results), wide=True))
    if result is not None:
        sections.append(page.section("Scores", _scores(result)))
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
        scored=result is not None,
    )


def _warnings(run: Run, result: Results | None, count: int) -> Iterator[str]:
    planned = run.settings.get("samples")
    if isinstance(planned, int) and planned > count:
        yield page.warning(f"The run is not finished: {count} of {planned} expressions are predicted.")
    if result is None:
        return
    if result.missing:
        effect = "left out" if result.missing_policy == "skip" else "scored as zero"
        items = [f"{p.sample}: {p.reason}" for p in result.missing]
        yield page.warning(f"Expressions of the split without a complete prediction, {effect}: {len(items)}", items)
    if result.errors:
        items = [f"{p.sample}: {p.reason}" for p in result.errors]
        yield page.warning(f"Expressions that could not be scored and are in no mean: {len(items)}", items)


def _scores(result: Results) -> str:
    """The four groups, and how they came about."""
    scored = {name: count["scored"] for name, count in result.counts()["by_type"].items()}
    scored["overall"] = scored["referring"] + scored["reasoning"]
    rows = []
    for name in MEANS:
        means = result.group(name)
        rows.append((name, scored[name], means.jf, means.j, means.f, means.a, means.r))
    protocol = result.summary()["protocol"]
    said = "; ".join(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in protocol.items())
    table = page.table(("", "n", "J&F", "J", "F", "A", "R"), rows, lead="overall")
    return table + page.note(f"In per cent. Protocol: {said}.")


def _words(value: object) -> str:
    return ", ".join(f"{k} in {n}" for k, n in value.items()) if isinstance(value, dict) else str(value)


def _problems(run: Run) -> str:
    problems = run.problems()
    count = problems.total()
    listed = [("none", problems[None]), *((name, n) for name, n in problems.most_common() if name is not None)]
    rows = [(name, n, f"{100 * n / count:.1f} %" if count else None) for name, n in listed]
    return page.section("Problems of the replies", page.table(("", "expressions", "share"), rows))


def _seconds(run: Run) -> str:
    seconds = run.seconds()
    if not seconds:
        return ""
    rows = [(stage, float(mean)) for stage, mean in seconds.items()]
    said = page.note("Stages run beside each other, so their sum can be more than the time that passed.")
    return page.section("Seconds per expression", page.table(("stage", "mean"), rows) + said)


def _comparison(runs: Sequence[Run], results: Sequence[Results | None]) -> str:
    """One row per run."""
    header = ["run", "expressions", "without a problem", "seconds each"]
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
