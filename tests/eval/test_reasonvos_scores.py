"""ReasonVOS scores by hand: three places for a prediction, frames that count, and what the published script skips."""

import json
import shutil

import cv2
import numpy as np
import pytest
import small_roots as small

from eval import reasonvos
from veason import mask_lines, masks
from veason.datasets import open_dataset
from veason.errors import DataError

MEANS = {"J": 100 * (3 / 7 + 1 + 0 + 0.0625) / 4, "F": 100 * (0.6 + 1 + 0.5 + 0) / 4}


@pytest.fixture
def root(tmp_path):
    return small.write_reasonvos(tmp_path / "reasonvos")


def check_by_hand(results, layout):
    assert [row.key for row in results.rows] == list(small.REASON_SAID)
    assert [row.j for row in results.rows] == pytest.approx([100 * j for j in small.REASON_J], abs=1e-12)
    assert [row.f for row in results.rows] == pytest.approx([100 * f for f in small.REASON_F], abs=1e-12)
    assert results.summary()["protocol"]["layout"] == layout


@pytest.mark.parametrize("value", [255, 1])
@pytest.mark.parametrize("below", [".", "Annotations"])
@pytest.mark.parametrize(("name", "place"), [("object", small.OBJECT_FOLDERS.get), ("position", str)])
def test_three_layouts(root, tmp_path, value, below, name, place):
    """VideoLISA's, Veason's (the same below Annotations) and GLUS's, which is also our own (below Annotations)."""
    small.predict_reasonvos(tmp_path / "run" / below, place, value)
    check_by_hand(reasonvos.evaluate(root, tmp_path / "run"), f"{name} (found)")
    check_by_hand(reasonvos.evaluate(root, tmp_path / "run", layout=name), name)


def test_groups_and_means(root, tmp_path):
    results = reasonvos.evaluate(root, small.predict_reasonvos(tmp_path / "p"))
    summary = results.summary()
    assert summary["overall"] == pytest.approx({**MEANS, "JF": (MEANS["J"] + MEANS["F"]) / 2})
    assert summary["long"]["J"] == pytest.approx(50)  # v1/1 and v1/2
    assert summary["short"]["F"] == pytest.approx(30)  # v1/0 and v2/0
    assert summary["groups"] == {"overall": 4, "long": 2, "short": 2}
    assert set(summary["ground_truth_sha256"]) == {"meta", "annotations"}
    assert "4 of 4 expressions" in results.table()


def test_rles_go_by_video_and_position(root, tmp_path):
    with open(tmp_path / "masks.jsonl", "w") as file:
        for sample in open_dataset("reasonvos", root):
            rles = [masks.encode(mask) for mask in small.REASON_SAID[sample.key]]
            file.write(json.dumps(mask_lines.record(sample, rles)) + "\n")
    check_by_hand(reasonvos.evaluate(root, tmp_path / "masks.jsonl"), "position (found)")


def test_masks_of_frames_that_do_not_count_may_be_missing(root, tmp_path):
    pred = small.predict_reasonvos(tmp_path / "p")
    (pred / "v1/1/00003.png").unlink()  # not annotated for this object
    check_by_hand(reasonvos.evaluate(root, pred, missing="error"), "position (found)")
    (pred / "v1/0/00003.png").unlink()  # annotated for that one
    with pytest.raises(DataError, match=r"v1/0: 1 of 3 frames are missing"):
        reasonvos.evaluate(root, pred, missing="error")


def test_both_layouts_at_once_are_ambiguous_and_none_is_named(root, tmp_path):
    pred = small.predict_reasonvos(tmp_path / "p")
    small.predict_reasonvos(pred, small.OBJECT_FOLDERS.get)
    with pytest.raises(DataError, match=r"folders of both layouts .*4 object, 4 position.*--layout"):
        reasonvos.evaluate(root, pred)
    assert len(reasonvos.evaluate(root, pred, layout="object").rows) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither mose_v1_1/0 nor v1/0"):
        reasonvos.evaluate(root, tmp_path / "empty")


def test_a_missing_folder_is_zero_here_and_skipped_as_published(root, tmp_path):
    pred = small.predict_reasonvos(tmp_path / "p", small.OBJECT_FOLDERS.get)
    shutil.rmtree(pred / "mose_v1_12")
    zero = reasonvos.evaluate(root, pred)
    skip = reasonvos.evaluate(root, pred, missing="skip")
    assert [problem.sample for problem in zero.missing] == ["v1/1", "v1/2"]
    assert zero.summary()["overall"]["J"] == pytest.approx(100 * (3 / 7 + 0.0625) / 4)
    assert skip.summary()["overall"]["J"] == pytest.approx(100 * (3 / 7 + 0.0625) / 2)
    counts = skip.counts
    assert (counts["expected"], counts["found"], counts["skipped"], counts["scored"]) == (4, 2, 2, 2)
    assert "missing 2 (--missing skip), skipped 2" in skip.table()


def test_the_size_of_the_annotation_is_the_one(root, tmp_path, capsys):
    pred = small.predict_reasonvos(tmp_path / "p")
    cv2.imwrite(str(pred / "v2/0/00000.png"), np.zeros((40, 40), np.uint8))
    arguments = ["--gt", root, "--pred", pred, "--out", tmp_path / "out", "--workers", 1]
    assert reasonvos.main([str(argument) for argument in arguments]) == 2
    assert "error: v2/0: " in capsys.readouterr().err
    assert json.loads((tmp_path / "out/results.json").read_text())["counts"]["scored"] == 3


def test_missing_annotations_are_an_error_not_a_skip(root, tmp_path):
    pred = small.predict_reasonvos(tmp_path / "p")
    shutil.rmtree(root / "Annotations/mose_v1_12")
    results = reasonvos.evaluate(root, pred, missing="skip")
    assert [problem.sample for problem in results.errors] == ["v1/1", "v1/2"]
    assert not results.complete
    assert [row.key for row in results.rows] == ["v1/0", "v2/0"]


@pytest.mark.parametrize("place", [str, small.OBJECT_FOLDERS.get])
def test_two_workers_write_the_same_bytes(root, tmp_path, place):
    pred = small.predict_reasonvos(tmp_path / "p", place)
    shutil.rmtree(pred / place("v1/1"))
    for workers in (1, 2):
        reasonvos.evaluate(root, pred, workers=workers).write(tmp_path / f"out{workers}")
    for name in ("results.csv", "results.json"):
        one, two = ((tmp_path / f"out{workers}" / name).read_bytes() for workers in (1, 2))
        assert one == two


def test_other_annotations_are_another_version(root, tmp_path):
    pred = small.predict_reasonvos(tmp_path / "p")
    before = reasonvos.evaluate(root, pred).gt_sha256["annotations"]
    small.write_masks(root / "Annotations/mose_v1_12", ["00006"], [small.SQUARE], value=1)
    assert reasonvos.evaluate(root, pred).gt_sha256["annotations"] != before


def test_a_run_that_lost_its_masks_and_a_run_on_another_data_set(root, tmp_path, capsys):
    run = tmp_path / "run"
    small.predict_reasonvos(run / "Annotations", str)
    lines = [{"video": sample.video, "exp_id": sample.exp_id} for sample in open_dataset("reasonvos", root)]
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--gt", root, "--pred", run, "--out", tmp_path / "out", "--workers", 1]
    assert reasonvos.main([str(argument) for argument in arguments]) == 0
    (run / "run.json").write_text(json.dumps({"settings": {"dataset": "mevis", "split": "valid_u"}}))
    assert reasonvos.main([str(argument) for argument in arguments]) == 2
    assert "python -m eval.mevis" in capsys.readouterr().err
    (run / "run.json").unlink()
    shutil.rmtree(run / "Annotations")
    assert reasonvos.main([str(argument) for argument in arguments]) == 2
    assert "the masks of none are there" in capsys.readouterr().err
