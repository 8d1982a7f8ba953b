"""The ReVOS protocol: numbers by hand, every kind of prediction, and an oracle that follows the benchmark's words."""

import csv
import json
import math
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import plain_metrics
from eval import metrics, revos
from eval.scoring import Scorer, score_videos
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.tables import aligned

SHIFT = lambda mask: np.roll(mask, (2, 3), (0, 1))  # noqa: E731
EMPTY, FULL = np.zeros_like, np.ones_like


def same(mask):
    return mask


def scores(results):
    return {(row.video, row.exp_id): (row.j, row.f, row.jf, row.extra["A"], row.extra["R"]) for row in results.rows}


def one_video(world, targets, preds, tmp_path, *, type_id=0, value=255):
    """A world of one expression with the given target and predicted masks; the prediction folder."""
    world.video("v", targets[0].shape, [f"{t:05d}" for t in range(len(targets))])
    world.objects[1] = [target if target.any() else None for target in targets]
    world.ask("v", "0", type_id, [1])
    world.write()
    for t, pred in enumerate(preds):
        path = tmp_path / "pred" / "v" / "0" / f"{t:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pred.astype(np.uint8) * value)
    return tmp_path / "pred"


# A and R of one frame


def test_accuracy_compares_raw_values():
    pred = np.array([[255, 255], [0, 0]], np.uint8)
    count = np.array([[1, 0], [0, 2]], np.uint8)
    assert metrics.accuracy(pred, count) == 1 / 4  # only the lower left is equal
    assert metrics.accuracy(pred // 255, count) == 2 / 4


@pytest.mark.parametrize(
    ("value", "count", "contribution"),
    [(255, 0, 255), (255, 1, 0), (255, 2, 1), (255, 3, 2), (1, 0, 1), (1, 1, 0), (1, 2, 255), (1, 3, 254)],
)
def test_false_positives_wrap_around(value, count, contribution):
    pred, gt = np.full((1, 2), value, np.uint8), np.full((1, 2), count, np.uint8)
    assert metrics.robustness(pred, gt, 1000) == 1 - 2 * contribution / (1000 + 1e-6)


def test_robustness_stops_at_zero_and_without_foreground():
    pred, gt = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8)
    assert metrics.robustness(pred, gt, 16) == 0.0
    assert metrics.robustness(pred, gt, 0) == 0.0
    assert metrics.robustness(gt, gt, 0) == 1.0


# whole evaluations


def test_means_are_rounded_before_they_are_averaged(empty_world, tmp_path):
    """J 1, 0, 0 and F 1, 1, 1 over three frames: the row's JF is 66.67, the type's 66.665."""
    spot = np.zeros((8, 8), bool)
    spot[2:5, 2:5] = True
    targets, preds = [spot, EMPTY(spot), EMPTY(spot)], [spot, FULL(spot), FULL(spot)]
    pred = one_video(empty_world, targets, preds, tmp_path)
    results = revos.evaluate(empty_world.root, pred)
    (row,) = results.rows
    assert (row.j, row.f, row.jf) == (33.33, 100.0, 66.67)
    assert results.mean("referring", "JF") == (33.33 + 100.0) / 2
    assert row.extra["R"] == 33.33  # the first frame: nothing false; the others: no foreground, all false
    assert row.extra["A"] == 28.65  # (55/64 + 0 + 0) / 3: with 255 no pixel inside counts


def test_overall_is_the_plain_mean_of_two_types(world, tmp_path):
    """Three expressions of type 0 weigh as much as two of type 1."""
    results = revos.evaluate(world.root, world.predict(tmp_path / "p", SHIFT))
    rows = {t: [row for row in results.rows if row.extra["type_id"] == t] for t in (0, 1, 2)}
    assert [len(rows[t]) for t in (0, 1, 2)] == [3, 2, 1]
    for column in ("J", "F", "A", "R"):
        first, second = (np.mean([row.cells()[column] for row in rows[t]]) for t in (0, 1))
        assert results.mean("overall", column) == (first + second) / 2
    overall = results.groups["overall"]
    assert overall["JF"] == pytest.approx((overall["J"] + overall["F"]) / 2)
    assert results.mean("absent", "J") == rows[2][0].j == 100.0  # a shifted nothing is nothing


def test_a_type_without_expressions_is_undefined(empty_world, tmp_path):
    spot = np.ones((4, 5), bool)
    pred = one_video(empty_world, [spot], [spot], tmp_path)
    results = revos.evaluate(empty_world.root, pred)
    assert results.mean("referring", "J") == 100.0
    assert math.isnan(results.mean("reasoning", "J"))
    assert math.isnan(results.mean("overall", "R"))
    assert (
        revos.main(["--gt", str(empty_world.root), "--pred", str(pred), "--out", str(tmp_path), "--workers", "1"]) == 0
    )
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["overall"] == dict.fromkeys(("J", "F", "JF", "A", "R"))
    assert "–" in results.table()


def test_perfect_prediction(world, tmp_path):
    results = revos.evaluate(world.root, world.predict(tmp_path / "p", same), robustness="binary")
    assert all(row[:3] == (100.0, 100.0, 100.0) and row[3:] == (100.0, 100.0) for row in scores(results).values())


def test_empty_prediction(world, tmp_path):
    found = scores(revos.evaluate(world.root, world.predict(tmp_path / "p", EMPTY)))
    assert found["UVO/all/-a_1", "10"] == (100.0, 100.0, 100.0, 100.0, 100.0)  # absent target: nothing is right
    assert found["UVO/all/-a_1", "0"][:3] == (33.33, 33.33, 33.33)  # empty target in one frame of three
    assert found["MOSE/b", "0"][:3] == (50.0, 100.0, 75.0)  # frame 2 is full: no boundary either
    assert all(row[4] == 100.0 for row in found.values())


def test_full_prediction(world, tmp_path):
    found = scores(revos.evaluate(world.root, world.predict(tmp_path / "p", FULL)))
    assert found["UVO/all/-a_1", "10"] == (0.0, 100.0, 50.0, 0.0, 0.0)  # F alone is fooled by a full frame
    assert found["MOSE/b", "0"][:3] == (50.0, 100.0, 75.0)


def test_wrong_object(empty_world, tmp_path):
    left, right = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    left[2:6, 2:6], right[12:16, 12:16] = True, True
    pred = one_video(empty_world, [left], [right], tmp_path)
    (binary,) = revos.evaluate(empty_world.root, pred, robustness="binary").rows
    found = (binary.j, binary.f, binary.extra["A"], binary.extra["R"])
    assert found == (0.0, 0.0, 92.0, 0.0)  # 368 of 400 pixels; 16 false of 16
    (visa,) = revos.evaluate(empty_world.root, pred).rows
    assert (visa.extra["A"], visa.extra["R"]) == (92.0, 0.0)


def test_stored_values_change_a_and_r_but_not_j_and_f(world, tmp_path):
    high = revos.evaluate(world.root, world.predict(tmp_path / "255", SHIFT, value=255))
    low = revos.evaluate(world.root, world.predict(tmp_path / "1", SHIFT, value=1))
    assert [(r.j, r.f, r.jf) for r in high.rows] == [(r.j, r.f, r.jf) for r in low.rows]
    assert high.mean("overall", "A") < low.mean("overall", "A")
    assert high.mean("overall", "R") != low.mean("overall", "R")
    assert high.protocol["prediction_values"] == {"0": 1, "0/255": 5}  # the absent target's masks are empty
    assert low.protocol["prediction_values"] == {"0": 1, "0/1": 5}
    binary = [revos.evaluate(world.root, tmp_path / name, robustness="binary").rows for name in ("255", "1")]
    assert binary[0] == binary[1]


def test_one_bit_png_reads_as_0_and_255(world, tmp_path):
    eight = world.predict(tmp_path / "8", SHIFT)
    one = shutil.copytree(eight, tmp_path / "1")
    for path in one.rglob("*.png"):
        Image.fromarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).save(path)
        assert path.read_bytes()[24] == 1  # bit depth in the header
    assert revos.evaluate(world.root, one) == revos.evaluate(world.root, eight)


def oracle(world, pred, *, binary):
    """Rows by the benchmark's words, on whole (T, H, W) arrays."""
    rows = {}
    for video, expressions in world.expressions.items():
        for exp_id in expressions:
            paths = [pred / video / exp_id / f"{frame}.png" for frame in world.frames[video]]
            masks = np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths])
            count = np.stack(world.count(video, exp_id))
            ground = np.stack(world.foreground(video)) != 0
            if binary:
                masks, count = (masks != 0).astype(np.uint8), (count != 0).astype(np.uint8)
            j = np.array([plain_metrics.region_similarity(p, g) for p, g in zip(masks, count, strict=True)]).mean()
            f = np.array([plain_metrics.boundary_measure(p, g) for p, g in zip(masks, count, strict=True)]).mean()
            a = (masks == count).mean(axis=(1, 2)).mean()
            false = ((np.uint8(1) - count) * masks).sum(axis=(1, 2))
            r = np.maximum(1 - false / (ground.sum(axis=(1, 2)) + 1e-6), 0).mean()
            rows[video, exp_id] = tuple(round(100 * value, 2) for value in (j, f, (j + f) / 2, a, r))
    return rows


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("value", [255, 1])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-3, 2)])
def test_equal_to_the_protocol_in_plain_words(world, tmp_path, binary, value, shift):
    rng = np.random.default_rng(5)
    pred = world.predict(
        tmp_path / "p", lambda mask: np.roll(mask, shift, (0, 1)) ^ (rng.random(mask.shape) < 0.002), value=value
    )
    found = scores(revos.evaluate(world.root, pred, robustness="binary" if binary else "visa"))
    assert found == oracle(world, pred, binary=binary)
    assert len(set(found.values())) > 3


# missing and broken predictions


@pytest.fixture
def holed(world, tmp_path):
    """A run folder with the video MOSE/b, one expression and one frame of another missing."""
    pred = world.predict(tmp_path / "run" / "Annotations", same)
    shutil.rmtree(pred / "MOSE")
    shutil.rmtree(pred / "UVO/all/-a_1/1")
    (pred / "UVO/all/-a_1/2/00005.png").unlink()
    return tmp_path / "run"


MISSING = ["UVO/all/-a_1/1", "UVO/all/-a_1/2", "MOSE/b/0", "MOSE/b/1"]


def test_missing_is_zero(world, holed):
    results = revos.evaluate(world.root, holed)
    assert [problem.sample for problem in results.missing] == MISSING
    assert "1 of 3 frames" in results.missing[1].reason
    assert "00005.png" in results.missing[1].reason
    assert len(results.rows) == 6
    zeros = [(row.j, row.f, row.jf, row.extra["A"], row.extra["R"]) for row in results.rows if row.problem]
    assert zeros == [(0.0,) * 5] * 4
    assert results.counts | {"by_type": None} == {
        "videos": 2,
        "expected": 6,
        "found": 2,
        "missing": 4,
        "skipped": 0,
        "errors": 0,
        "scored": 6,
        "by_type": None,
    }
    assert results.mean("referring", "J") == pytest.approx(100 / 3)
    assert results.complete


def test_missing_is_skipped(world, holed):
    results = revos.evaluate(world.root, holed, missing="skip")
    assert [row.exp_id for row in results.rows] == ["0", "10"]
    assert results.counts["skipped"] == 4
    assert results.mean("referring", "J") == 100.0
    assert results.counts["by_type"]["reasoning"] == {"expected": 2, "scored": 0}


def test_missing_is_an_error(world, holed, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--gt", str(world.root), "--pred", str(holed), "--out", str(out), "--missing", "error"]
    assert revos.main(arguments) == 2
    message = capsys.readouterr().err
    assert "4 of 6 expressions" in message
    assert all(f"\n{sample}: " in message for sample in MISSING)
    assert not list(out.glob("results.*"))


def break_size(path):
    cv2.imwrite(str(path), np.zeros((31, 24), np.uint8))


def break_off(path):
    path.write_bytes(path.read_bytes()[:-20])


def break_inside(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def break_kind(path):
    path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_size, "the mask is 31x24, the video of UVO/all/-a_1/1 is 24x31"),
        (break_off, "cut off"),
        (break_inside, "damaged"),
        (break_kind, "not a PNG"),
    ],
)
@pytest.mark.parametrize("missing", ["zero", "skip"])
def test_a_broken_mask_is_an_error_and_the_rest_is_scored(world, tmp_path, capsys, damage, words, missing):
    pred = world.predict(tmp_path / "p", SHIFT)
    whole = scores(revos.evaluate(world.root, pred))
    path = pred / "UVO/all/-a_1/1/00005.png"
    damage(path)
    arguments = ["--gt", world.root, "--pred", pred, "--out", tmp_path / "out", "--workers", 1, "--missing", missing]
    assert revos.main([str(argument) for argument in arguments]) == 2
    assert "INCOMPLETE" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/results.json").read_text())
    assert summary["complete"] is False
    (error,) = summary["errors"]
    assert error["sample"] == "UVO/all/-a_1/1"
    assert str(path) in error["reason"]
    assert words in error["reason"]
    with open(tmp_path / "out/results.csv", newline="") as file:
        rows = {(row["video_name"], row["exp_id"]): row for row in csv.DictReader(file)}
    del whole["UVO/all/-a_1", "1"]
    assert {key: tuple(float(row[c]) for c in ("J", "F", "JF", "A", "R")) for key, row in rows.items()} == whole


def test_broken_ground_truth_costs_its_expressions_only(world, tmp_path):
    pred = world.predict(tmp_path / "p", same)
    path = world.root / "mask_dict.json"
    tracks = json.loads(path.read_text())
    tracks["102"].pop()
    path.write_text(json.dumps(tracks))
    results = revos.evaluate(world.root, pred)
    assert [problem.sample for problem in results.errors] == ["UVO/all/-a_1/1", "UVO/all/-a_1/2"]
    assert "2 masks for 3 frames" in results.errors[0].reason
    assert len(results.rows) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 0}, "workers"),
        ({"robustness": "none"}, "visa, binary"),
        ({"missing": "no"}, "zero, skip, error"),
    ],
)
def test_wrong_options_are_named(world, tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        revos.evaluate(world.root, world.predict(tmp_path / "p", same), **change)


def test_no_prediction_folder(world, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        revos.evaluate(world.root, tmp_path / "nowhere")


# files


def test_two_workers_write_the_same_bytes(world, tmp_path):
    pred = world.predict(tmp_path / "p", SHIFT)
    break_off(pred / "MOSE/b/1/00001.png")
    shutil.rmtree(pred / "UVO/all/-a_1/2")
    for workers in (1, 2):
        revos.evaluate(world.root, pred, workers=workers).write(tmp_path / f"out{workers}")
    for name in ("results.csv", "results.json"):
        one, two = ((tmp_path / f"out{workers}" / name).read_bytes() for workers in (1, 2))
        assert one == two
        assert len(one) > 200


class Faulty:
    """A data set with a defect, which is ours to see and not the user's to put right."""

    def gt_frames(self, sample):
        return range(len(sample))

    def foreground(self, video):
        raise TypeError("a defect")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_defect_names_its_video(world, tmp_path, workers):
    samples = list(open_dataset("revos", world.root, split="valid"))
    with pytest.raises(TypeError, match="a defect") as caught:
        list(score_videos(Scorer(Faulty(), tmp_path, "visa"), {"MOSE/b": samples[-2:]}, workers=workers))
    assert caught.value.__notes__ == ["while scoring the video MOSE/b"]


def test_csv_rows_keep_the_order_and_text_of_the_data_set(world, tmp_path):
    text = revos.evaluate(world.root, world.predict(tmp_path / "p", same)).to_csv()
    assert text.splitlines()[0] == "video_name,exp_id,exp,J,F,JF,A,R,type_id"
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["exp_id"] for row in rows] == ["0", "1", "10", "2", "0", "1"]
    assert rows[0]["exp"] == "the cat, on the left"
    assert rows[1]["exp"] == 'who is "it"?'
    assert rows[2]["type_id"] == "2"
    assert rows[0]["J"] == "100.0"


def test_summary_states_the_protocol(world, tmp_path):
    summary = revos.evaluate(world.root, world.predict(tmp_path / "p", same)).summary()
    assert summary["protocol"]["robustness"] == "visa"
    assert summary["protocol"]["prediction_values"] == {"0": 1, "0/255": 5}
    assert set(summary["ground_truth_sha256"]) == {"meta", "masks", "foreground"}
    assert summary["counts"]["by_type"]["absent"] == {"expected": 1, "scored": 1}
    assert summary["ours"]["R_type2"] == summary["absent"]["R"] == 100.0


def test_the_command_prints_an_aligned_table(world, tmp_path):
    pred = world.predict(tmp_path / "run/Annotations", same)
    command = [sys.executable, "-m", "eval.revos", "--gt", world.root, "--pred", pred.parent, "--out", tmp_path / "o"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    printed = lines[2:8]
    assert printed[0].split() == ["n", "J", "F", "J&F", "A", "R"]
    assert printed[2].split()[:5] == ["referring", "3", "100.00", "100.00", "100.00"]
    assert len({len(line) for line in printed}) == 1
    assert done.stderr == ""  # no progress bar where there is no terminal


def test_tables_align_and_print_nan_as_a_dash():
    assert aligned(("a", "bb"), [("x", 1.0), ("long", math.nan)]).splitlines() == [
        "a       bb",
        "----  ----",
        "x     1.00",
        "long     –",
    ]


def test_evaluation_needs_no_torch():
    code = "import sys, eval.revos; print([m for m in ('torch', 'transformers', 'sam2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
