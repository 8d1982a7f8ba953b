"""Ref-DAVIS17 scored in its two protocols: numbers by hand, what is missing or broken, and results kept apart."""

import json
import shutil

import index_roots as roots
import pytest
import small_roots as small

from demo.twins import build_twin
from demo.writer import build_world
from eval import refdavis
from veason.datasets import open_dataset
from veason.errors import DataError


def evaluate_binary(root, pred, **options):
    return refdavis.evaluate(root, pred, protocol="binary", **options)


def evaluate_unsupervised(root, pred, **options):
    return refdavis.evaluate(root, pred, protocol="unsupervised", **options)


def perfect(results):
    return results.groups["overall"] == {"J": 100.0, "F": 100.0, "JF": 100.0}


@pytest.fixture
def root(tmp_path):
    return roots.write_refdavis(tmp_path / "gt")


@pytest.fixture
def pred(root, tmp_path):
    """Annotator 0 mixes up the two objects of ``v``; the rest is perfect."""
    said = {"v/0": small.OTHER, "v/4": small.SQUARE}
    return roots.predict(open_dataset("refdavis", root), tmp_path / "pred", lambda key, t: said.get(key))


def test_mixed_up_objects_cost_binary_and_not_unsupervised(root, pred):
    unsupervised = evaluate_unsupervised(root, pred)
    assert perfect(unsupervised)
    assert unsupervised.counts["objects_scored"] == 4 * 3
    binary = evaluate_binary(root, pred)
    assert binary.summary()["overall"] == pytest.approx({"J": 1000 / 12, "F": 1000 / 12, "JF": 1000 / 12})  # 10 of 12


def test_objects_then_annotators(root, pred):
    """Annotator 1 says the shifted square in ``w``: a third of its objects; the others are perfect."""
    small.write_masks(pred / "w/1", ["00000"], [small.SHIFTED])
    results = evaluate_unsupervised(root, pred)
    j = 100 * (2 + small.SHIFTED_J) / 3
    assert results.mean("annotators/1", "J") == pytest.approx(j)
    assert results.mean("overall", "J") == pytest.approx((300 + j) / 4)
    assert results.mean("overall", "F") == pytest.approx((300 + 100 * (2 + small.SHIFTED_F) / 3) / 4)
    assert results.summary()["annotators"]["2"] == {"J": 100.0, "F": 100.0, "JF": 100.0}


@pytest.mark.parametrize("value", [1, 100, 255])
def test_any_nonzero_value_is_inside(root, tmp_path, value):
    pred = roots.predict(open_dataset("refdavis", root), tmp_path / "p", lambda key, t: None, value)
    assert perfect(evaluate_unsupervised(root, pred))
    assert evaluate_binary(root, pred).summary()["overall"]["JF"] == 100.0


def test_missing_predictions(root, pred):
    shutil.rmtree(pred / "v/5")  # annotator 1, second object
    zero = evaluate_unsupervised(root, pred)
    assert zero.mean("annotators/1", "J") == pytest.approx(200 / 3)  # one of its three objects is lost
    assert zero.counts | {"found": 11, "missing": 1, "skipped": 0, "scored": 12, "runs_scored": 8} == zero.counts
    skip = evaluate_unsupervised(root, pred, missing="skip")
    assert skip.mean("annotators/1", "J") == 100.0  # its run over the video is left out
    assert skip.counts | {"skipped": 1, "scored": 10, "runs": 8, "runs_scored": 7, "runs_skipped": 1} == skip.counts
    assert skip.summary()["skipped"] == ["v/annotator 1"]
    for evaluate in (evaluate_unsupervised, evaluate_binary):
        with pytest.raises(DataError, match=r"missing for 1 of 12 expressions(.|\n)*v/5: no folder v/5"):
            evaluate(root, pred, missing="error")
    (pred / "v/6/00001.png").unlink()
    assert evaluate_binary(root, pred).summary()["overall"]["J"] == pytest.approx(100 * 8 / 12)
    assert evaluate_binary(root, pred, missing="skip").summary()["overall"]["J"] == pytest.approx(100 * 8 / 10)


def test_an_annotator_without_a_scored_run_has_no_mean(root, pred):
    shutil.rmtree(pred / "v/1")
    shutil.rmtree(pred / "w/1")
    summary = evaluate_unsupervised(root, pred, missing="skip").summary()
    assert summary["annotators"]["1"] == {"J": None, "F": None, "JF": None}
    assert summary["overall"] == {"J": None, "F": None, "JF": None}  # the mean is of four, not of three


def run(root, pred, out, protocol, *more):
    options = ["--protocol", protocol, "--gt", root, "--pred", pred, "--out", out, *more]
    return refdavis.main([str(option) for option in options])


def test_a_mask_of_another_size_is_listed_and_the_rest_scored(root, pred, tmp_path, capsys):
    small.write_masks(pred / "v/2", ["00001"], [small.SQUARE[:, :19]])
    assert run(root, pred, tmp_path / "out", "unsupervised", "--workers", 1) == 2
    printed = capsys.readouterr()
    assert "v/annotator 2: " in printed.err
    assert "the mask is 20x19, the video of v/2 is 20x20" in printed.err
    assert "INCOMPLETE: 1 runs" in printed.out
    summary = json.loads((tmp_path / "out/unsupervised/results.json").read_text())
    assert (summary["complete"], summary["counts"]["errors"], summary["counts"]["runs_scored"]) == (False, 1, 7)
    assert summary["annotators"]["2"]["J"] == 100.0  # of its other video
    assert run(root, pred, tmp_path / "out", "binary", "--workers", 1) == 2


def test_protocols_are_named_and_kept_apart(root, pred, tmp_path, capsys):
    for protocol in ("unsupervised", "binary"):
        assert run(root, pred, tmp_path / "out", protocol, "--workers", 1) == 0
        assert f"protocol refdavis-{protocol}" in capsys.readouterr().out
        summary = json.loads((tmp_path / "out" / protocol / "results.json").read_text())
        assert summary["protocol"]["name"] == f"refdavis-{protocol}"
        assert summary["dataset"] == "refdavis"
        assert summary["ground_truth_sha256"].keys() == {"meta", "annotations"}
    with pytest.raises(SystemExit):
        refdavis.main(["--gt", str(root), "--pred", str(pred), "--out", str(tmp_path)])
    assert "--protocol" in capsys.readouterr().err


def test_the_hash_tells_annotations_apart(root, pred):
    before = evaluate_unsupervised(root, pred).gt_sha256
    assert evaluate_binary(root, pred).gt_sha256 == before
    roots.write_index(root / "valid/Annotations/w/00000.png", {1: small.OTHER})
    after = evaluate_unsupervised(root, pred).gt_sha256
    assert (after["meta"], after["annotations"] == before["annotations"]) == (before["meta"], False)


@pytest.mark.slow
def test_predicted_by_the_oracle_and_scored_by_one_and_two_workers(tmp_path):
    from inference import predict

    build_world(tmp_path / "world", videos=4, seed=7, size=(84, 112), frames=(8, 10))
    root = build_twin("refdavis", tmp_path / "world", tmp_path / "refdavis")
    options = ["--dataset", "refdavis", "--data-root", root, "--policy", "oracle", "--tracker", "grabcut"]
    predict.main([str(o) for o in [*options, "--model-size", 84, "--output", tmp_path / "run"]])
    found = {}
    for protocol in ("unsupervised", "binary"):
        for workers in (1, 2):
            out = tmp_path / f"scores{workers}"
            assert run(root, tmp_path / "run", out, protocol, "--workers", workers) == 0
            found[protocol, workers] = [(out / protocol / f"results.{s}").read_bytes() for s in ("csv", "json")]
        assert found[protocol, 1] == found[protocol, 2]
        overall = json.loads(found[protocol, 1][1])["overall"]
        assert overall["J"] > 60  # grabcut on plain shapes
