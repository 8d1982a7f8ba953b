"""From a benchmark's files to its score with the real commands: predict on a twin, then evaluate what was written."""

import json

import pytest

from demo.twins import build_twin
from eval import mevis, reasonvos
from inference import predict


@pytest.mark.parametrize("form", ["png", pytest.param("rle", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "evaluator"), [("mevis", mevis), ("reasonvos", reasonvos)])
def test_what_predict_writes_is_scored_as_it_is(two_videos, tmp_path, name, evaluator, form):
    root, run = build_twin(name, two_videos, tmp_path / name), tmp_path / "run"
    arguments = ["--dataset", name, "--data-root", str(root), "--policy", "oracle", "--tracker", "grabcut"]
    predict.main([*arguments, "--masks", form, "--output", str(run)])
    assert evaluator.main(["--gt", str(root), "--pred", str(run), "--out", str(run / "scores"), "--workers", "1"]) == 0
    summary = json.loads((run / "scores/results.json").read_text())
    counts = summary["counts"]
    assert counts["expected"] == counts["found"] == counts["scored"] >= 10
    assert summary["overall"]["JF"] > 50  # true boxes, tracked: far above what no or a wrong mask would give
    split = json.loads((run / "run.json").read_text())["settings"]["split"]
    assert split == summary["split"] == {"mevis": "valid_u", "reasonvos": "test"}[name]
