"""ViCaS scored: mAP of tracks and J&F of unions by hand, the two forms of predictions, everything wrong with files."""

import json

import index_roots as roots
import numpy as np
import pytest
import small_roots as small

from benchmarks import bench_vicas
from demo.twins import build_twin
from demo.writer import build_world
from eval import scoring, submit, table, vicas, vicas_files
from eval.vicas_files import open_tracks
from veason import masks, worker_pool
from veason.datasets import open_dataset
from veason.errors import DataError

SQUARE, OTHER, NOTHING = small.SQUARE, small.OTHER, small.NOTHING
FIRST, SECOND = [SQUARE, SQUARE], [OTHER, NOTHING]
"""The two tracks in the two frames that count."""


@pytest.fixture
def root(tmp_path):
    return roots.write_vicas(tmp_path / "gt")


def write(pred, *tracks_of_referrals, numbers=(3, 12)):
    for number in numbers:
        roots.write_json(pred / f"{number:06d}.json", roots.vicas_said(number, *tracks_of_referrals))
    return pred


def evaluate(root, pred, *, j_and_f=True, **options):
    return vicas.evaluate(root, pred, split="v1.0/test", j_and_f=j_and_f, **options)


def test_perfect_tracks(root, tmp_path):
    results = evaluate(root, write(tmp_path / "p", [FIRST], [SECOND, FIRST]))
    summary = results.summary()
    assert summary["overall"] == dict.fromkeys(("mAP", "AP@50", "AP@75", "AP@90", "J", "F", "JF"), 100.0)
    assert summary["tracks"] == {"true": 6, "predicted": 6}
    assert (summary["dataset"], summary["version"], summary["protocol"]["name"]) == ("vicas", "v1.0", "vicas-v1.0")
    assert summary["counts"]["expected"] == 4


def test_a_union_cannot_find_both_tracks(root, tmp_path):
    """PNGs: the first referral is found; the union of both tracks is 75 pixels, track 7 is 50 of them, track 9 25.

    At .50 to .65 the union stands for track 7 (.667), so of 3 true tracks a video 2 are found, beyond that 1: per
    video found, found or found, not found. AP: 2/3 of the recall at precision 1; then, in the order found, not, found,
    not: recall 1/6 at precision 1 and 1/6 at 2/3.
    """
    dataset = open_dataset("vicas", root, split="v1.0/test")
    pred = roots.predict(dataset, tmp_path / "p", lambda key, t: None)
    results = evaluate(root, pred)
    low, high = 100 * 2 / 3, 100 * (1 / 6 + 1 / 6 * 2 / 3)
    expected = {"mAP": (4 * low + 6 * high) / 10, "AP@50": low, "AP@75": high, "AP@90": high}
    assert {name: results.mean("overall", name) for name in expected} == pytest.approx(expected)
    assert results.summary()["overall"]["JF"] == 100.0  # as a union it is perfect
    assert results.further["tracks"] == {"true": 6, "predicted": 4}


def test_only_the_frames_of_people_count(root, tmp_path):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND])
    path = pred / "000003.json"
    said = json.loads(path.read_text())
    said["pred_lgvis_masks"][0].append({"filename": "00001.jpg", "mask_rles": ["not looked at", None]})
    path.write_text(json.dumps(said))
    assert evaluate(root, pred).summary()["overall"]["mAP"] == 100.0


def test_j_and_f_are_means_over_scored_frames_and_referrals(root, tmp_path):
    pred = write(tmp_path / "p", [[small.SHIFTED, small.SHIFTED]], [FIRST, SECOND])
    overall = evaluate(root, pred).summary()["overall"]
    assert overall["J"] == pytest.approx(100 * (1 + small.SHIFTED_J) / 2)
    assert overall["F"] == pytest.approx(100 * (1 + small.SHIFTED_F) / 2)
    # shifted: 15 of 35 pixels, below .5: not found, found, found, twice; 6 true. The best precision from the third
    # track on: 4 right of 6; below it at most 2/3 as well
    assert overall["AP@50"] == pytest.approx(100 * 4 / 6 * 4 / 6)


def test_nothing_predicted_is_no_track(root, tmp_path):
    dataset = open_dataset("vicas", root, split="v1.0/test")
    pred = roots.predict(dataset, tmp_path / "p", lambda key, t: NOTHING)
    results = evaluate(root, pred)
    assert results.further["tracks"] == {"true": 6, "predicted": 0}
    assert results.mean("overall", "mAP") == 0.0
    assert evaluate(root, write(tmp_path / "q", [], [])).further["tracks"] == {"true": 6, "predicted": 0}


def test_missing_videos_and_referrals(root, tmp_path):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND], numbers=[3])
    zero = evaluate(root, pred)
    assert zero.summary()["overall"] | {"mAP": 50.0, "J": 50.0} == zero.summary()["overall"]
    assert zero.further["tracks"] == {"true": 6, "predicted": 3}
    skip = evaluate(root, pred, missing="skip")
    assert skip.summary()["overall"]["mAP"] == 100.0
    assert (skip.further["tracks"]["true"], skip.summary()["counts"]["skipped"]) == (3, 2)
    write(pred, [FIRST], numbers=[12])  # the second referral lacks
    with pytest.raises(DataError, match="000012/1: pred_lgvis_masks has 1 entries, this referral is number 1"):
        evaluate(root, pred, missing="error")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda said: said[0].pop(), "1 of 2 scored frames are missing, first 00002.jpg"),
        (lambda said: said[0][1]["mask_rles"].clear(), "the number of tracks changes"),
        (lambda said: [frame.update(mask_rles=frame["mask_rles"] * 11) for frame in said[0]], "11 tracks; .* 10"),
        (lambda said: said[0][0]["mask_rles"][0].update(size=[20, 21]), r"\[20, 21\]"),
        (lambda said: said[0][0]["mask_rles"].__setitem__(0, None), "expected an RLE"),
        (lambda said: said[0].append(said[0][0]), "'00000.jpg' stands there twice"),
        (lambda said: said[0][0].pop("mask_rles"), "filename and mask_rles"),
        (lambda said: said.__setitem__(0, None), "filename and mask_rles"),
    ],
)
def test_a_broken_referral_is_listed_and_the_rest_scored(root, tmp_path, change, reason):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND])
    said = roots.vicas_said(3, [FIRST], [FIRST, SECOND])
    change(said["pred_lgvis_masks"])
    roots.write_json(pred / "000003.json", said)
    results = evaluate(root, pred)
    (problem,) = results.errors
    assert problem.sample == "000003/0"
    with pytest.raises(DataError, match=reason):
        raise DataError(problem.reason)
    assert results.summary()["overall"]["mAP"] == 100.0
    assert results.further["tracks"] == {"true": 5, "predicted": 5}


@pytest.mark.parametrize("text", ["{", "[]", '{"video_id": 4, "pred_lgvis_masks": []}', "[" * 100_000])
def test_a_file_that_is_no_prediction_is_listed(root, tmp_path, text, capsys):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND])
    (pred / "000003.json").write_text(text)
    arguments = ["--gt", root, "--pred", pred, "--split", "v1.0/test", "--out", tmp_path / "out", "--workers", 1]
    assert vicas.main([str(argument) for argument in arguments]) == 2
    assert "error: 000003/0: " in capsys.readouterr().err
    assert json.loads((tmp_path / "out/results.json").read_text())["counts"]["errors"] == 2


def test_the_benchmarks_files_are_written_from_any_form(root, tmp_path):
    dataset = open_dataset("vicas", root, split="v1.0/test")
    tracks = write(tmp_path / "tracks", [FIRST], [FIRST, SECOND])
    pngs = roots.predict(dataset, tmp_path / "pngs", lambda key, t: None)
    for pred in (tracks, pngs):
        assert submit.write_vicas(dataset, pred, tmp_path / "out", missing="zero") == []
        assert evaluate(root, tmp_path / "out").summary()["overall"] == evaluate(root, pred).summary()["overall"]
    assert (tmp_path / "out/000003.json").is_file()
    with pytest.raises(DataError, match="entry for every referral"):
        submit.write_vicas(dataset, pngs, tmp_path / "out", missing="skip")


def test_the_union_of_tracks_is_read_as_a_mask(root, tmp_path):
    dataset = open_dataset("vicas", root, split="v1.0/test")
    predicted = open_tracks(write(tmp_path / "p", [FIRST], [FIRST, SECOND]), dataset)
    assert np.array_equal(predicted.read(dataset[1], 0), 255 * (SQUARE | OTHER).astype(np.uint8))
    assert np.array_equal(predicted.read(dataset[1], 2), 255 * SQUARE.astype(np.uint8))


@pytest.mark.slow
def test_predicted_by_the_oracle_and_scored_by_one_and_two_workers(tmp_path):
    from inference import predict

    build_world(tmp_path / "world", videos=4, seed=7, size=(84, 112), frames=(8, 10))
    root = build_twin("vicas", tmp_path / "world", tmp_path / "vicas")
    options = ["--dataset", "vicas", "--data-root", root, "--split", "v1.0/train", "--policy", "oracle"]
    options += ["--tracker", "grabcut", "--model-size", 84, "--limit", 12, "--output", tmp_path / "run"]
    predict.main([str(option) for option in options])
    found = []
    for workers in (1, 2):
        out = tmp_path / f"scores{workers}"
        arguments = ["--gt", root, "--pred", tmp_path / "run", "--split", "v1.0/train", "--out", out]
        arguments += ["--missing", "skip", "--workers", workers, "--j-and-f"]
        assert vicas.main([str(argument) for argument in arguments]) == 0
        found.append([(out / f"results.{suffix}").read_bytes() for suffix in ("csv", "json")])
    assert found[0] == found[1]
    overall = json.loads(found[0][1])["overall"]
    assert overall["J"] > 40  # the oracle's objects that are not in its frame are lost
    assert overall["AP@50"] > overall["AP@90"]


def test_each_mask_is_checked_once_however_many_frames(root, tmp_path, monkeypatch):
    """Every frame and both numbers ask for a referral's masks: they are read and checked for the first alone."""
    pred, asked = write(tmp_path / "p", [FIRST], [FIRST, SECOND]), []
    real = vicas_files.TrackFiles._check

    def counted(self, sample, referral):
        asked.append(sample.key)
        return real(self, sample, referral)

    monkeypatch.setattr(vicas_files.TrackFiles, "_check", counted)
    assert evaluate(root, pred).summary()["overall"]["JF"] == 100.0
    assert sorted(asked) == ["000003/0", "000003/1", "000012/0", "000012/1"]


def test_map_alone_is_the_same_map(root, tmp_path, capsys):
    pred = write(tmp_path / "p", [FIRST], [[small.SHIFTED, small.SHIFTED]])
    both, alone = evaluate(root, pred), evaluate(root, pred, j_and_f=False)
    assert alone.summary()["overall"] == both.summary()["overall"] | {"J": None, "F": None, "JF": None}
    options = ["--gt", root, "--pred", pred, "--split", "v1.0/test", "--out", tmp_path / "out", "--workers", 1]
    assert vicas.main([str(o) for o in options]) == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["overall"] == alone.summary()["overall"]
    assert "nan" not in (tmp_path / "out/results.csv").read_text()
    printed = capsys.readouterr().out
    assert "grey values not looked at in 4" in printed
    assert printed.endswith("--j-and-f\n")
    assert "  J  " not in printed
    options[-1] = 2  # workers
    assert vicas.main([str(o) for o in (*options, "--j-and-f")]) == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["overall"] == both.summary()["overall"]
    capsys.readouterr()
    pred = write(tmp_path / "p", [FIRST], numbers=[3])  # a broken referral and a video that is there
    (pred / "000003.json").write_text("{}")
    assert vicas.main([str(o) for o in options]) == 2


def test_the_workers_of_map_alone_find_the_same(root, tmp_path, monkeypatch):
    """Few frames are scored without a second process, many by several; the record is one and the same."""
    pred = write(tmp_path / "p", [FIRST], [[small.SHIFTED, small.SHIFTED]])
    pools, real = [], worker_pool.WorkerPool
    monkeypatch.setattr(worker_pool, "WorkerPool", lambda *args, **said: pools.append(said) or real(*args, **said))
    found = [evaluate(root, pred, j_and_f=False, workers=4)]
    assert pools == []
    monkeypatch.setattr(vicas, "COMPILE_FROM", 1)
    found.append(evaluate(root, pred, j_and_f=False, workers=4))
    assert len(pools) == 1
    assert found[0].summary() == found[1].summary()
    assert found[0].to_csv() == found[1].to_csv()
    with pytest.raises(DataError, match="workers must be at least 1, found 0"):
        evaluate(root, pred, j_and_f=False, workers=0)


def test_map_alone_has_no_j_and_f_of_what_is_missing_either(root, tmp_path):
    """One referral is broken, the others are missing."""
    pred = write(tmp_path / "p", [FIRST], numbers=[3])
    (pred / "000003.json").write_text('{"video_id": 3, "pred_lgvis_masks": [null]}')
    alone, both = evaluate(root, pred, j_and_f=False), evaluate(root, pred)
    assert alone.summary()["overall"] == both.summary()["overall"] | {"J": None, "F": None, "JF": None}
    assert both.summary()["overall"]["J"] == 0.0


def test_runs_with_and_without_j_and_f_stand_in_one_table(root, tmp_path, capsys):
    """The protocol of mAP is the same."""
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND])
    for name in ("alone", "both"):
        evaluate(root, pred, j_and_f=name == "both").write(tmp_path / name)
    assert table.main([f"{name}={tmp_path / name}" for name in ("alone", "both")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "measured:" in line]
    assert ["100.0 | – |" in rows[0], "100.0 | 100.0 |" in rows[1]] == [True, True]


@pytest.mark.parametrize("j_and_f", [True, False])
def test_compiled_or_not_the_results_are_the_same_to_the_last_digit(root, tmp_path, monkeypatch, j_and_f):
    """Tracks of every kind: shifted, of nothing, a broken referral."""
    pred = write(tmp_path / "p", [[small.SHIFTED, small.SHIFTED], [NOTHING, NOTHING]], [FIRST, SECOND])
    said = json.loads((pred / "000012.json").read_text())
    said["pred_lgvis_masks"][0][0]["mask_rles"][0]["counts"] = "0<"
    (pred / "000012.json").write_text(json.dumps(said))
    found = []
    for compile_from in (0, 1 << 40):
        for module in (vicas, scoring):
            monkeypatch.setattr(module, "COMPILE_FROM", compile_from)
        results = evaluate(root, pred, j_and_f=j_and_f)
        assert (masks._compiled is None) == (compile_from > 0)
        found.append((results.summary(), results.to_csv()))
    assert found[0] == found[1]
    assert [problem["sample"] for problem in found[0][0]["errors"]] == ["000012/0"]


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
def test_map_is_the_published_scripts_to_the_last_digit(tmp_path, monkeypatch, compile_from):
    monkeypatch.setattr(vicas, "COMPILE_FROM", compile_from)
    bench_vicas.build(tmp_path, videos=5, frames=61)
    found = evaluate(tmp_path, tmp_path / "pred", j_and_f=False).mean("overall", "mAP")
    assert found == bench_vicas.plain(tmp_path)
    assert 0 < found < 100


def test_masks_between_the_peoples_frames_are_not_looked_at(root, tmp_path):
    """The published script does not look at them, so a damaged one costs nothing."""
    path = root / "annotations/v1.0/000003.json"
    content = json.loads(path.read_text())
    between = next(entry for entry in content["segmentations"] if not entry["is_gt"])
    between["mask_rles"][0]["counts"] = "\u0001"
    path.write_text(json.dumps(content))
    assert evaluate(root, write(tmp_path / "p", [FIRST], [FIRST, SECOND])).summary()["overall"]["mAP"] == 100.0


@pytest.mark.parametrize(("content", "words"), [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer")])
def test_a_pointer_instead_of_a_prediction_is_named(root, tmp_path, content, words):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND])
    (pred / "000003.json").write_bytes(content)
    assert words in evaluate(root, pred).errors[0].reason


def test_published_rule_is_that_nothing_may_be_missing(root, tmp_path):
    pred = write(tmp_path / "p", [FIRST], [FIRST, SECOND], numbers=[3])
    with pytest.raises(DataError, match="benchmark's script: nothing may be missing"):
        evaluate(root, pred, missing="published")
