"""MeViS scores by hand: every kind of prediction and storage, whatever is missing or broken."""

import csv
import json
import math
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import small_roots as small

from eval import mevis
from eval.results import means
from veason import mask_lines, mask_png, masks
from veason.datasets import open_dataset
from veason.errors import DataError

MEANS = {"J": 100 * (3 / 7 + 1 + 0 + 0.0625) / 4, "F": 100 * (0.6 + 1 + 0 + 0) / 4}  # 37.2767…, 40
MEANS["JF"] = (MEANS["J"] + MEANS["F"]) / 2


@pytest.fixture
def root(tmp_path):
    return small.write_mevis(tmp_path / "mevis")


@pytest.fixture
def pred(tmp_path):
    return small.predict_mevis(tmp_path / "pred")


def check_by_hand(results):
    assert [row.key for row in results.rows] == list(small.MEVIS_SAID)
    assert [row.j for row in results.rows] == pytest.approx([100 * j for j in small.MEVIS_J], abs=1e-12)
    assert [row.f for row in results.rows] == pytest.approx([100 * f for f in small.MEVIS_F], abs=1e-12)
    assert results.summary()["overall"] == pytest.approx(MEANS)


def test_shifted_perfect_wrong_and_full(root, pred):
    check_by_hand(mevis.evaluate(root, pred))


def test_empty_predictions(root, tmp_path):
    for key, said in small.MEVIS_SAID.items():
        small.write_masks(tmp_path / "e" / key, small.FRAMES[key[:2]], [small.NOTHING] * len(said))
    results = mevis.evaluate(root, tmp_path / "e")
    # the object of v1/2 is not in the first of two frames: there nothing is right
    assert [(row.j, row.f) for row in results.rows] == [(0, 0), (0, 0), (50, 50), (0, 0)]


def as_ones(root, tmp_path):
    return small.predict_mevis(tmp_path / "ones", value=1)


def as_run_folder(root, tmp_path):
    small.predict_mevis(tmp_path / "run/Annotations")
    return tmp_path / "run"


def as_one_bit(root, tmp_path):
    for key, said in small.MEVIS_SAID.items():
        for frame, mask in zip(small.FRAMES[key[:2]], said, strict=True):
            path = tmp_path / "bits" / key / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mask_png.encode(mask, bits=1))
    return tmp_path / "bits"


def as_lines(root, tmp_path):
    (tmp_path / "rle").mkdir()
    with open(tmp_path / "rle" / mask_lines.FILE, "w") as file:
        for sample in open_dataset("mevis", root):
            rles = [masks.encode(mask) for mask in small.MEVIS_SAID[sample.key]]
            file.write(json.dumps(mask_lines.record(sample, rles)) + "\n")
    return tmp_path / "rle"


@pytest.mark.parametrize("store", [as_ones, as_run_folder, as_one_bit, as_lines])
def test_every_way_to_store_masks(root, tmp_path, store):
    check_by_hand(mevis.evaluate(root, store(root, tmp_path)))


def lose_video(pred):
    shutil.rmtree(pred / "v1")
    return ["v1/0", "v1/1", "v1/2"]


def lose_expression(pred):
    shutil.rmtree(pred / "v1/1")
    return ["v1/1"]


def lose_frame(pred):
    (pred / "v1/0/00001.png").unlink()
    return ["v1/0"]


@pytest.mark.parametrize("lose", [lose_video, lose_expression, lose_frame])
def test_what_is_missing_is_zero_or_skipped_or_the_end(root, pred, lose):
    lost = lose(pred)
    zero, skip = mevis.evaluate(root, pred), mevis.evaluate(root, pred, missing="skip")
    kept = [i for i, key in enumerate(small.MEVIS_SAID) if key not in lost]
    assert [problem.sample for problem in zero.missing] == [problem.sample for problem in skip.missing] == lost
    assert [row.key for row in zero.rows if row.problem] == lost
    assert zero.summary()["overall"]["J"] == pytest.approx(100 * sum(small.MEVIS_J[i] for i in kept) / 4)
    assert skip.summary()["overall"]["J"] == pytest.approx(100 * sum(small.MEVIS_J[i] for i in kept) / len(kept))
    counts = {"videos": 2, "expected": 4, "found": len(kept), "missing": len(lost), "errors": 0}
    assert zero.counts == {**counts, "skipped": 0, "scored": 4}
    assert skip.counts == {**counts, "skipped": len(lost), "scored": len(kept)}
    with pytest.raises(DataError, match=f"missing for {len(lost)} of 4 expressions") as error:
        mevis.evaluate(root, pred, missing="error")
    assert [note.partition(": ")[0] for note in error.value.__notes__] == lost


def break_size(path):
    cv2.imwrite(str(path), np.zeros((20, 21), np.uint8))


def break_off(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(("damage", "words"), [(break_size, "the mask is 20x21"), (break_off, "cut off")])
@pytest.mark.parametrize("missing", ["zero", "skip", "error"])
def test_a_broken_mask_is_an_error_whatever_missing_says(root, pred, tmp_path, capsys, damage, words, missing):
    damage(pred / "v1/1/00001.png")
    arguments = ["--gt", root, "--pred", pred, "--out", tmp_path / "out", "--missing", missing, "--workers", 1]
    assert mevis.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert "INCOMPLETE: 1 " in printed.out
    assert "error: v1/1: " in printed.err
    assert words in printed.err
    summary = json.loads((tmp_path / "out/results.json").read_text())
    assert [error["sample"] for error in summary["errors"]] == ["v1/1"]
    assert summary["counts"]["scored"] == 3  # the rest is scored, and no zero stands in
    assert summary["overall"]["J"] == pytest.approx(100 * (3 / 7 + 0 + 0.0625) / 3)


def test_broken_ground_truth_costs_its_expressions_only(root, pred):
    path = root / "valid_u/mask_dict.json"
    tracks = json.loads(path.read_text())
    tracks["12"].pop()
    path.write_text(json.dumps(tracks))
    results = mevis.evaluate(root, pred)
    assert [problem.sample for problem in results.errors] == ["v1/1", "v1/2"]
    assert "1 masks for 2 frames" in results.errors[0].reason
    assert [row.key for row in results.rows] == ["v1/0", "v2/0"]


def test_overlapping_objects_are_one_target(root, tmp_path):
    """256 objects on one another: their number, which ReVOS counts in a byte, is not what matters here."""
    path, meta = root / "valid_u/mask_dict.json", root / "valid_u/meta_expressions.json"
    content = json.loads(meta.read_text())
    content["videos"] = {"v2": content["videos"]["v2"]}
    ids = list(range(100, 356))
    content["videos"]["v2"]["expressions"]["0"].update(anno_id=ids, obj_id=ids)
    meta.write_text(json.dumps(content))
    path.write_text(json.dumps({str(i): [masks.encode(small.SQUARE)] for i in ids}))
    small.write_masks(tmp_path / "p/v2/0", ["00000"], [small.SQUARE])
    assert [(row.j, row.f) for row in mevis.evaluate(root, tmp_path / "p").rows] == [(100.0, 100.0)]


def test_two_workers_write_the_same_bytes_as_a_command(root, pred, tmp_path):
    lose_expression(pred)
    break_off(pred / "v2/0/00000.png")
    printed = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        command = [sys.executable, "-m", "eval.mevis", "--gt", root, "--pred", pred, "--out", out, "--workers", workers]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 2
        printed.append(done.stdout + done.stderr)
    assert printed[0] == printed[1]
    for name in ("results.csv", "results.json"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


def test_files_and_table_state_the_protocol(root, pred):
    results = mevis.evaluate(root, pred)
    summary = results.summary()
    assert (summary["benchmark"], summary["dataset"], summary["split"]) == ("MeViS", "mevis", "valid_u")
    assert summary["protocol"]["name"] == "mevis"
    assert summary["protocol"]["missing"] == "zero"
    assert summary["protocol"]["prediction_values"] == {"0/255": 4}
    assert set(summary["ground_truth_sha256"]) == {"meta", "masks"}
    rows = list(csv.DictReader(results.to_csv().splitlines()))
    assert float(rows[0]["J"]) == pytest.approx(300 / 7, abs=1e-12)  # unrounded
    text = results.table()
    assert "expected 4, found 4, missing 0 (--missing zero), skipped 0, errors 0" in text
    assert text.splitlines()[-1].split() == ["overall", "4", "37.28", "40.00", "38.64"]


def test_no_row_has_no_mean():
    assert all(math.isnan(mean) for mean in means([]).values())


def test_splits_of_the_server_are_refused(root, pred):
    with pytest.raises(DataError, match=r"'valid' cannot be scored here.*eval\.submit"):
        mevis.evaluate(root, pred, split="valid")


@pytest.mark.parametrize(
    ("change", "words"), [({"workers": 0}, "workers"), ({"missing": "no"}, "zero, skip, error"), ({"meta": "x"}, "x: ")]
)
def test_wrong_options_are_named(root, pred, change, words):
    with pytest.raises(DataError, match=words):
        mevis.evaluate(root, pred, **change)


KILLED = """
import os, signal, sys
from eval import mevis, predictions
from veason import atomic
calls = 0
real = {module}.{name}
def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
{module}.{name} = deadly
mevis.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("module", "name", "at"), [("predictions", "read_png", 4), ("atomic", "write_bytes", 2)])
def test_a_killed_evaluation_leaves_nothing_half_done(root, pred, tmp_path, module, name, at):
    """Killed among the frames, and between the two files: the same command again writes what it would have written."""
    arguments = [str(a) for a in ("--gt", root, "--pred", pred, "--out", tmp_path / "out", "--workers", 1)]
    code = KILLED.format(module=module, name=name, at=at).replace(
        "from eval import results.atomic", "from eval import results"
    )
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == -9
    assert not (tmp_path / "out/results.json").exists()
    assert mevis.main(arguments) == 0
    mevis.evaluate(root, pred).write(tmp_path / "whole")
    for file in ("results.csv", "results.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
