"""Lost, damaged, foreign and too large files are errors that name them, never zeros, tracebacks or endless waits."""

import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest

from eval import convert, revos
from veason import atomic, mask_lines, mask_png, masks
from veason.datasets import open_dataset

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n"


def score(world, pred, *options):
    out = world.root.parent / "scores"
    return revos.main([str(o) for o in ("--gt", world.root, "--pred", pred, "--out", out, "--workers", 1, *options)])


def results(world):
    return json.loads((world.root.parent / "scores/results.json").read_text())


def to_rles(pred, out, *options):
    return convert.main([str(o) for o in (pred, out, "--to", "rle", "--workers", 1, *options)])


@pytest.fixture
def run(world, tmp_path):
    """A finished run folder with PNGs, as `inference.predict` leaves it."""
    return write_run(world, tmp_path / "run")


@pytest.fixture
def rle_run(world, tmp_path):
    """The same with its masks in one file."""
    folder = write_run(world, tmp_path / "rle")
    shutil.rmtree(folder / "Annotations")
    with open(folder / mask_lines.FILE, "w") as file:
        for sample in open_dataset("revos", world.root):
            rles = [masks.encode(target != 0) for target in world.count(sample.video, sample.exp_id)]
            file.write(json.dumps(mask_lines.record(sample, rles)) + "\n")
    return folder


def write_run(world, folder):
    world.predict(folder / "Annotations", lambda mask: mask)
    lines = [{"video": s.video, "exp_id": s.exp_id, "problem": None} for s in open_dataset("revos", world.root)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"settings": {"dataset": "revos", "split": "valid"}}))
    return folder


def one_line(said):
    """The one line on stderr, which has to be there and to be alone."""
    (line,) = said.err.splitlines()
    return line


# what a run folder says is done and has lost


def test_a_whole_run_scores(world, run, rle_run):
    for folder in (run, rle_run):
        assert score(world, folder) == 0
        assert results(world)["overall"]["JF"] == 100.0


def lose_folder(run):
    shutil.rmtree(run / "Annotations/MOSE/b/1")


def lose_frame(run):
    (run / "Annotations/MOSE/b/1/00001.png").unlink()


def empty_frame(run):
    (run / "Annotations/MOSE/b/1/00001.png").write_bytes(b"")


def cut_frame(run):
    path = run / "Annotations/MOSE/b/1/00001.png"
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("damage", [lose_folder, lose_frame, empty_frame, cut_frame])
@pytest.mark.parametrize("missing", ["zero", "skip", "published"])
def test_lost_pngs_of_a_run_are_an_error_that_names_them(world, run, capsys, damage, missing):
    damage(run)
    assert score(world, run, "--missing", missing) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith("error: MOSE/b/1: ")
    assert str(run) in line
    found = results(world)
    assert (found["counts"]["errors"], found["counts"]["missing"], found["counts"]["scored"]) == (1, 0, 5)
    assert found["overall"]["JF"] == 100.0  # of the others: no zero stands in


@pytest.mark.parametrize("damage", [lose_folder, lose_frame, empty_frame, cut_frame])
def test_convert_names_lost_pngs_with_and_without_the_data_set(world, run, tmp_path, capsys, damage):
    damage(run)
    assert to_rles(run, tmp_path / "a", "--gt", world.root) == 2
    assert one_line(capsys.readouterr()).startswith("error: MOSE/b/1: ")
    if damage is not lose_frame:  # a folder that is one frame short looks whole to whom does not know the frames
        assert to_rles(run, tmp_path / "b") == 2
        assert one_line(capsys.readouterr()).startswith("error: MOSE/b/1: ")


def test_masks_of_elsewhere_may_be_missing(world, run):
    """Without a run's word that they are done, they are missing predictions: zeros."""
    lose_folder(run)
    (run / "predictions.jsonl").unlink()
    assert score(world, run) == 0
    assert results(world)["counts"] | {"missing": 1, "errors": 0, "scored": 6} == results(world)["counts"]


def lose_masks(run):
    (run / mask_lines.FILE).unlink()


def empty_masks(run):
    (run / mask_lines.FILE).write_bytes(b"")


@pytest.mark.parametrize("damage", [lose_masks, empty_masks, lambda run: None])
def test_all_masks_of_a_run_lost_is_one_line(world, run, rle_run, capsys, damage):
    folder = run if damage.__name__ == "<lambda>" else rle_run
    damage(folder)
    shutil.rmtree(folder / "Annotations", ignore_errors=True)
    assert score(world, folder) == 2
    line = one_line(capsys.readouterr())
    assert "predictions.jsonl: 6 samples are done according to this file, and the masks of none are there" in line
    assert to_rles(folder, world.root.parent / "c", "--gt", world.root) == 2
    assert "the masks of none are there" in one_line(capsys.readouterr())


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_masks_file_that_lost_its_tail(world, rle_run, tmp_path, capsys, keep):
    path = rle_run / mask_lines.FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    left = path.read_bytes().count(b"\n")
    assert 0 < left < 6
    assert score(world, rle_run) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 - left
    assert all("says that it is done, but no masks of" in line for line in lines)
    assert results(world)["counts"]["errors"] == 6 - left
    assert to_rles(rle_run, tmp_path / "d", "--gt", world.root) == 2
    assert len(capsys.readouterr().err.splitlines()) == 6 - left


def test_a_damaged_line_in_the_middle_is_named(world, rle_run, capsys):
    path = rle_run / mask_lines.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00" * 40 + b"\n" + b"".join(lines[2:]))
    assert score(world, rle_run) == 2
    assert "masks.jsonl:2: not a JSON line" in one_line(capsys.readouterr())


@pytest.mark.parametrize("content", [None, b"", b'{"video": "MOSE/b", "exp'])
def test_predictions_gone_empty_or_cut_leave_the_masks_as_they_are(world, run, content):
    path = run / "predictions.jsonl"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert score(world, run) == 0
    assert results(world)["counts"]["scored"] == 6


@pytest.mark.parametrize("content", [b"nonsense\n", b"{}\n"])
def test_predictions_that_cannot_be_read_are_an_error_where_they_matter(world, run, capsys, content):
    lose_folder(run)
    (run / "predictions.jsonl").write_bytes(content)
    assert score(world, run) == 2
    assert "predictions.jsonl" in one_line(capsys.readouterr())


# what is no prediction of this data set


@pytest.mark.parametrize("name", ["pred.json", "pred.jsonl"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "a Git LFS pointer"),
        (HTML, "a web page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
    ],
)
def test_a_foreign_file_is_called_what_it_is(world, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert score(world, tmp_path / name) == 2
    line = one_line(capsys.readouterr())
    assert f"{name}: {words}" in line
    assert not (tmp_path / "scores/results.json").exists()
    assert to_rles(tmp_path / name, tmp_path / "a", "--gt", world.root) == 2
    assert words in one_line(capsys.readouterr())


@pytest.mark.parametrize(("content", "words"), [(LFS, "a Git LFS pointer"), (HTML, "a web page")])
def test_foreign_ground_truth_is_one_line_for_all_samples(world, run, capsys, content, words):
    (world.root / "mask_dict_foreground.json").unlink()
    (world.root / "mask_dict.json").write_bytes(content)
    assert score(world, run) == 2
    line = one_line(capsys.readouterr())
    assert f"mask_dict.json: not JSON but {words}" in line
    assert not (world.root.parent / "scores/results.json").exists()


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"nothing at all", b"3"])
def test_a_document_that_is_no_object_is_told(world, tmp_path, capsys, content):
    (tmp_path / "pred.json").write_bytes(content)
    assert score(world, tmp_path / "pred.json") == 2
    assert "not a JSON object" in one_line(capsys.readouterr())


def of_nothing(folder):
    return folder


def of_other_files(folder):
    (folder / "notes").mkdir()
    (folder / "notes/readme.txt").write_text("hello")
    return folder


def of_other_masks(folder):
    (folder / "someone/else").mkdir(parents=True)
    (folder / "someone/else/00000.png").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("make", [of_nothing, of_other_files, of_other_masks])
@pytest.mark.parametrize("missing", ["zero", "skip", "published"])
def test_a_folder_without_any_prediction_scores_nothing(world, tmp_path, capsys, make, missing):
    (tmp_path / "p").mkdir()
    assert score(world, make(tmp_path / "p"), "--missing", missing) == 2
    line = one_line(capsys.readouterr())
    assert "holds no complete prediction for any of 6 expressions" in line
    assert "UVO/all/-a_1" in line
    assert not (tmp_path / "scores/results.json").exists()


def test_an_empty_folder_is_not_converted(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    assert to_rles(tmp_path / "p", tmp_path / "a") == 2
    assert "holds no <video>/<exp_id>/<frame>.png" in one_line(capsys.readouterr())


def test_shards_that_are_not_joined_are_told(world, run, capsys):
    (run / "shards").mkdir()
    (run / "predictions.jsonl").unlink()
    shutil.rmtree(run / "Annotations")
    assert score(world, run) == 2
    assert "shards of the run are not joined" in one_line(capsys.readouterr())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "refdavis", "split": "valid"}, "python -m eval.refdavis --protocol unsupervised --gt ROOT --pred"),
        ({"dataset": "mevis", "split": "valid_u"}, "python -m eval.mevis --gt ROOT --pred"),
        ({"dataset": "revos", "split": "train"}, "say --split train"),
    ],
)
@pytest.mark.parametrize("place", ["", "Annotations"])
def test_a_run_on_another_data_set_is_refused(world, run, tmp_path, capsys, settings, words, place):
    (run / "run.json").write_text(json.dumps({"settings": settings}))
    assert score(world, run / place) == 2
    line = one_line(capsys.readouterr())
    assert words in line
    if settings["dataset"] != "revos":
        assert f"--pred {run} --out {run}/scores" in line
    assert to_rles(run / place, tmp_path / "a", "--gt", world.root) == 2
    capsys.readouterr()


# pictures and files that are traps


def bomb(side=60_000):
    """A PNG whose header promises `side` x `side` pixels, in a few kilobytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        mask_png.SIGNATURE
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_png_bomb_costs_its_own_sample_only(world, run, tmp_path, capsys, workers, monkeypatch):
    path = run / "Annotations/MOSE/b/1/00000.png"
    path.write_bytes(bomb())
    decoded = []
    monkeypatch.setattr(mask_png, "decode_grey", watch(mask_png.decode_grey, decoded))
    assert score(world, run, "--workers", workers) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith("error: MOSE/b/1: ")
    assert "the mask is 60000x60000, the video of MOSE/b/1 is 40x18" in line
    assert results(world)["counts"]["scored"] == 5
    assert bomb() not in decoded
    assert to_rles(run, tmp_path / "a") == 2
    assert "60000x60000 pixels" in one_line(capsys.readouterr())
    assert (tmp_path / "a" / mask_lines.FILE).read_bytes().count(b"\n") == 5


def watch(function, calls):
    def watched(data, size):
        calls.append(data)
        return function(data, size)

    return watched


def test_pipes_are_named_and_not_waited_for(world, run, tmp_path, capsys):
    path = run / "Annotations/MOSE/b/1/00000.png"
    path.unlink()
    os.mkfifo(path)
    assert score(world, run) == 2
    assert "no regular file" in one_line(capsys.readouterr())
    for options in ((), ("--gt", world.root)):
        assert to_rles(run, tmp_path / f"a{len(options)}", *options) == 2
        assert "no regular file" in one_line(capsys.readouterr())
    for name in ("pred.json", "pred.jsonl", "pipe"):
        os.mkfifo(tmp_path / name)
        assert score(world, tmp_path / name) == 2
        assert "no regular file" in one_line(capsys.readouterr())
    (run / mask_lines.FILE).touch()
    shutil.rmtree(run / "Annotations")
    (run / mask_lines.FILE).unlink()
    os.mkfifo(run / mask_lines.FILE)
    assert score(world, run) == 2
    assert "no regular file" in one_line(capsys.readouterr())


# the disk


def test_a_full_disk_and_a_file_in_the_way_are_one_line(world, run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    options = ["--gt", world.root, "--pred", run, "--workers", 1, "--out", tmp_path / "file/scores"]
    assert revos.main([str(o) for o in options]) == 2
    assert "a folder is needed" in one_line(capsys.readouterr())
    assert to_rles(run, tmp_path / "file/a") == 2
    assert "a folder is needed" in one_line(capsys.readouterr())

    def full(path, parts):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "write_parts", full)
    assert score(world, run) == 2
    assert "results.csv: no space left" in one_line(capsys.readouterr())
    assert to_rles(run, tmp_path / "a") == 2
    assert "convert.json: no space left" in one_line(capsys.readouterr())


def test_two_evaluations_do_not_share_a_folder(world, run, tmp_path, capsys):
    with atomic.Lock(tmp_path / "scores/.lock"):
        assert score(world, run) == 2
    assert "another process is writing here" in one_line(capsys.readouterr())
    assert score(world, run) == 0


def test_what_a_killed_evaluation_left_is_removed(world, run, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/.results.json.abcd1234").write_text("half")
    assert score(world, run) == 0
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [".lock", "results.csv", "results.json"]


def test_masks_decoded_are_not_of_a_header_that_lies(world, run, capsys):
    """The header says the right size, and the stream is none: an error, whatever a decoder makes of it."""
    path = run / "Annotations/MOSE/b/1/00000.png"
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 8
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert score(world, run) == 2
    assert one_line(capsys.readouterr()).startswith("error: MOSE/b/1: ")
    assert np.isfinite(results(world)["overall"]["JF"])
