"""The scores of a report and of a comparison are those of the benchmark's own evaluator, whichever it is."""

import json
import re

import pytest

from demo.twins import build_twin
from eval import mevis, reasonvos, refdavis, refytvos, vicas
from inference import predict
from inference.report import __main__ as report
from inference.report import compare
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


def predicted(name, root, run, *further):
    """A run folder of the first five expressions of a data set, with its scores; the results."""
    options = ["--dataset", name, "--data-root", root, "--policy", "oracle", "--tracker", "grabcut", *further]
    split = ["--split", SPLITS[name]] if name in SPLITS else []
    predict.main(list(map(str, [*options, *split, "--limit", 5, "--output", run])))
    evaluator, options = EVALUATORS[name]
    line = ["--gt", root, "--pred", run, "--out", run / "scores", "--workers", "1", "--missing", "skip", *options]
    assert evaluator.main(list(map(str, line))) == 0
    (results,) = (run / "scores").rglob("results.json")
    return json.loads(results.read_text())


@pytest.mark.parametrize("name", EVALUATORS)
def test_reports_and_comparisons_show_what_the_evaluator_finds(two_videos, tmp_path, name):
    root, run, first = build_twin(name, two_videos, tmp_path / name), tmp_path / "run", tmp_path / "one frame"
    found, of_first = predicted(name, root, run), predicted(name, root, first, "--frames", 1)
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

    compare.main(list(map(str, [first, run, "--gt", root, "--out", tmp_path / "out"])))
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert document["benchmark"] == found["benchmark"]
    assert [entry["jf"] for entry in document["runs"]] == [
        pytest.approx(of_first["overall"]["JF"]),
        pytest.approx(found["overall"]["JF"]),
    ]
    assert document["runs"][1]["box_iou"] > 95  # the oracle's boxes are rounded
    assert sum(group["expressions"] for group in document["groups"]) == 5
    if name == "vicas":
        assert document["runs"][1]["map"] == pytest.approx(found["overall"]["mAP"])
    compared = (tmp_path / "out" / "comparison.html").read_text()
    assert f"{found['benchmark']} · {found['split']} · 5 expressions" in compared
    assert compared.count("<article") == 5


def test_scores_without_j_and_f_are_refused_with_the_command(tmp_path):
    overall = {"mAP": 1.0, "J": None, "F": None, "JF": None}
    document = {
        **{"benchmark": "ViCaS", "dataset": "vicas", "split": "v1.0/test", "complete": True, "overall": overall},
        "counts": {"expected": 1, "missing": 0, "scored": 1, "errors": 0},
        **{"protocol": {}, "ground_truth_sha256": {}, "missing": [], "errors": []},
    }
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "results.json").write_text(json.dumps(document))
    (tmp_path / "scores" / "results.csv").write_text("video_name,exp_id,exp,J,F,JF\na,0,it,,,\n")
    run = runs.Run(path=tmp_path, settings={"dataset": "vicas", "split": "v1.0/test"}, versions={})
    with pytest.raises(DataError, match=r"holds no J and F; run: python -m eval\.vicas .* --j-and-f"):
        runs.read_scores(run, gt=tmp_path)


def test_a_benchmark_without_an_evaluator_is_refused(tmp_path):
    run = runs.Run(path=tmp_path, settings={"dataset": "sav"}, versions={})
    with pytest.raises(DataError, match=r"runs of 'sav' cannot be scored here, those of revos, .* leave out --gt"):
        runs.evaluator(run, remedy="leave out --gt")
