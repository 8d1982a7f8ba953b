"""Maps of object numbers scored as DAVIS's own code does: by hand, both tasks, and what is missing or wrong."""

import json
import shutil
from pathlib import Path

import index_roots as roots
import numpy as np
import pytest
import small_roots as small

from eval import refdavis, table

PERFECT = {"J": 100.0, "F": 100.0, "JF": 100.0}
SQUARE, OTHER, SHIFTED = small.SQUARE, small.OTHER, small.SHIFTED
TRUE = {"v": [{1: SQUARE, 2: OTHER}] * 4, "w": [{1: SQUARE}] * 3}
"""Two objects in four frames, one in three."""


@pytest.fixture
def root(tmp_path):
    return roots.write_refdavis(tmp_path / "gt", TRUE)


def write_maps(folder, videos):
    for video, frames in videos.items():
        for t, layers in enumerate(frames):
            roots.write_index(folder / video / f"{t:05d}.png", layers)
    return folder


def evaluate(root, pred, task, **options):
    return refdavis.evaluate(root, pred, protocol=task, **options)


def test_objects_by_number_and_by_match(root, tmp_path):
    """Numbers of `v` exchanged: semi-supervised finds nothing right there, unsupervised all of it."""
    pred = write_maps(tmp_path / "p", TRUE | {"v": [{2: SQUARE, 1: OTHER}] * 4})
    assert evaluate(root, pred, "unsupervised").groups["overall"] == PERFECT
    semi = evaluate(root, pred, "semi-supervised")
    assert semi.mean("overall", "J") == pytest.approx(100 / 3)  # of three objects
    assert semi.mean("sequences", "J") == pytest.approx(50)  # of two sequences


def test_frames_that_count(root, tmp_path):
    """`w` is wrong in its first frame: that costs a third of one object, or nothing where the frame does not count."""
    pred = write_maps(tmp_path / "p", TRUE | {"w": [{1: SHIFTED}, {1: SQUARE}, {1: SQUARE}]})
    j = (small.SHIFTED_J + 2) / 3
    results = evaluate(root, pred, "unsupervised")
    assert results.mean("overall", "J") == pytest.approx(100 * (2 + j) / 3)
    assert results.mean("sequences", "J") == pytest.approx(100 * (1 + j) / 2)
    assert results.mean("overall", "F") == pytest.approx(100 * (2 + (small.SHIFTED_F + 2) / 3) / 3)
    assert evaluate(root, pred, "semi-supervised").groups["overall"] == PERFECT


def test_void_pixels(tmp_path):
    """Void in the truth: no matter for unsupervised, background for semi-supervised."""
    void = np.zeros(small.SIZE, bool)
    void[0, :4] = True
    root = roots.write_refdavis(tmp_path / "gt", {"w": [{1: SQUARE, 255: void}] * 3})
    said = SQUARE.copy()
    said[0, :4] = True
    pred = write_maps(tmp_path / "p", {"w": [{1: said}] * 3})
    assert evaluate(root, pred, "unsupervised").mean("overall", "J") == 100.0
    inside = int((SQUARE & ~void).sum())
    assert evaluate(root, pred, "semi-supervised").mean("overall", "J") == pytest.approx(100 * inside / (inside + 4))


def run(root, pred, out, *options):
    return refdavis.main([str(o) for o in ("--gt", root, "--pred", pred, "--out", out, "--workers", 1, *options)])


@pytest.mark.parametrize("task", ["unsupervised", "semi-supervised"])
def test_the_command_finds_that_they_are_maps(root, tmp_path, capsys, task):
    pred = write_maps(tmp_path / "p", TRUE)
    assert run(root, pred, tmp_path / "out", "--protocol", task) == 0
    assert f"protocol davis-{task}: maps of object numbers" in capsys.readouterr().out
    folder = tmp_path / "out" / task
    summary = json.loads((folder / "results.json").read_text())
    assert summary["overall"] == summary["sequences"] == {"J": 100.0, "F": 100.0, "JF": 100.0}
    assert summary["counts"] | {"expected": 2, "found": 2, "scored": 2, "objects_scored": 3} == summary["counts"]
    assert (folder / "results.csv").read_text().splitlines()[1] == "v,1,100.0,100.0,100.0"
    assert table.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "2 videos, the published split has 30" in printed
    assert "244" not in printed  # expressions, which nobody asked for here


def test_missing_and_wrong_maps(root, tmp_path, capsys):
    pred = write_maps(tmp_path / "p", TRUE)
    (pred / "w/00001.png").unlink()
    zero, skip = (evaluate(root, pred, "unsupervised", missing=missing) for missing in ("zero", "skip"))
    assert zero.mean("overall", "J") == pytest.approx(200 / 3)
    assert skip.mean("overall", "J") == 100.0
    assert (zero.counts["skipped"], skip.counts["skipped"]) == (0, 1)
    for missing in ("error", "published"):
        assert run(root, pred, tmp_path / "out", "--protocol", "unsupervised", "--missing", missing) == 2
        assert "w/00001.png" in capsys.readouterr().err
    roots.write_index(pred / "v/00002.png", {1: SQUARE, 30: OTHER})
    assert run(root, pred, tmp_path / "out", "--protocol", "unsupervised") == 2
    assert "30 objects are predicted; DAVIS allows 20" in capsys.readouterr().err
    assert run(root, pred, tmp_path / "out", "--protocol", "semi-supervised") == 2
    assert "object 30 is predicted; the video has 2" in capsys.readouterr().err
    (pred / "v/00002.png").write_bytes(b"")
    assert run(root, pred, tmp_path / "out", "--protocol", "unsupervised") == 2
    assert "v/00002.png" in capsys.readouterr().err
    shutil.rmtree(pred)
    pred.mkdir()
    assert run(root, pred, tmp_path / "out", "--protocol", "semi-supervised") == 2
    assert "holds no <video>/<frame>.png of any of 2 videos" in capsys.readouterr().err


DATA = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not (DATA / "refdavis_osvos").is_dir(), reason="the sequences of OSVOS are not here")
@pytest.mark.slow
def test_osvos_on_six_sequences_as_the_official_code_gives(capsys):
    """J 77.29 and F 81.11 as a mean over sequences, from davis2017-evaluation."""
    results = evaluate(DATA / "refdavis", DATA / "refdavis_osvos", "unsupervised", workers=2)
    assert [round(results.mean("sequences", column), 2) for column in ("J", "F")] == [77.29, 81.11]
