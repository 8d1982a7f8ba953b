"""A report's scores are those of the benchmark's own evaluator, whichever benchmark the run is of."""

import json
import re

import pytest

from demo.twins import build_twin
from eval import mevis, reasonvos, refdavis, refytvos, vicas
from inference import predict
from inference.report import __main__ as report
from inference.report import run as runs
from veason.errors import DataError

EVALUATORS = {
    "mevis": (mevis, []),
    "reasonvos": (reasonvos, []),
    "refdavis": (refdavis, ["--protocol", "binary"]),
    "refytvos": (refytvos, ["--split", "train"]),
    "vicas": (vicas, ["--split", "v1.0/test", "--j-and-f"]),
}
SPLITS = {"vicas": "v1.0/test", "refytvos": "train"}


def predicted(name, world, folder):
    """(data set, run folder) of the first five expressions of a twin of the world."""
    root, run = build_twin(name, world, folder / name), folder / "run"
    options = ["--dataset", name, "--data-root", str(root), "--policy", "oracle", "--tracker", "grabcut"]
    split = ["--split", SPLITS[name]] if name in SPLITS else []
    predict.main([*options, *split, "--limit", "5", "--output", str(run)])
    return root, run


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATORS)
def test_a_report_shows_what_the_evaluator_finds(two_videos, tmp_path, name):
    root, run = predicted(name, two_videos, tmp_path)
    evaluator, options = EVALUATORS[name]
    line = ["--gt", root, "--pred", run, "--out", run / "scores", "--workers", "1", "--missing", "skip", *options]
    assert evaluator.main(list(map(str, line))) == 0
    (results,) = (run / "scores").rglob("results.json")
    found = json.loads(results.read_text())
    report.main([str(run), "--gt", str(root), "--missing", "skip", "--workers", "1"])
    page = (run / "report.html").read_text()
    shown = [f"{found['overall'][column]:.2f}" for column in ("JF", "J", "F")]
    assert re.search(
        r'<tr class="lead"><th scope=row>overall</th><td>5</td>' + "".join(f"<td>{v}</td>" for v in shown), page
    )
    scores = [float(jf) for jf in re.findall(r'data-jf="([0-9.]+)"', page)]
    assert len(scores) == page.count("<article") == 5
    assert sum(scores) / 5 == pytest.approx(found["overall"]["JF"])
    assert found["protocol"]["name"] in page


def test_a_benchmark_without_an_evaluator_is_refused(tmp_path):
    run = runs.Run(path=tmp_path, settings={"dataset": "sav"}, versions={})
    with pytest.raises(DataError, match=r"runs of 'sav' cannot be scored here, those of revos, .* leave out --gt"):
        runs.evaluate(run, gt=tmp_path, split="valid", meta=None, missing="zero", workers=1)
