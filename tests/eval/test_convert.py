"""Predictions from one form to another and back: the same pixels, whatever happens on the way."""

import json
import shutil

import cv2
import numpy as np
from PIL import Image

from eval import convert
from eval.predictions import open_predictions
from veason.datasets import open_dataset


def target(mask):
    return mask


def run(*arguments):
    return convert.main([*map(str, arguments), "--workers", "1"])


def pixels(folder):
    """Every mask below a folder by its place, and the number of bits it is stored with."""
    return {
        (str(path.relative_to(folder))): (path.read_bytes()[24], cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).tobytes())
        for path in folder.rglob("*.png")
    }


def test_round_trips_are_exact(world, tmp_path):
    """8 bits -> RLE -> 1 bit -> RLE -> 8 bits: 16 masks, every one as it was; both files of RLEs alike."""
    pred = world.predict(tmp_path / "p", target)
    gt = ("--gt", world.root)
    assert run(pred, tmp_path / "a", "--to", "rle") == 0
    assert run(tmp_path / "a", tmp_path / "b", "--to", "png1", *gt) == 0
    assert run(tmp_path / "b", tmp_path / "c", "--to", "rle") == 0
    assert run(tmp_path / "c", tmp_path / "d", "--to", "png", *gt) == 0
    lines = [(tmp_path / name / "masks.jsonl").read_bytes() for name in "ac"]
    assert lines[0] == lines[1]
    first, bilevel, last = (pixels(f) for f in (pred, tmp_path / "b" / "Annotations", tmp_path / "d" / "Annotations"))
    assert len(first) == 16
    assert first == last
    assert {name: mask for name, (_, mask) in bilevel.items()} == {name: mask for name, (_, mask) in first.items()}
    assert {bits for bits, _ in bilevel.values()} == {1}


def test_two_workers_write_the_same(world, tmp_path):
    pred = world.predict(tmp_path / "p", target)
    for workers in ("1", "2"):
        assert convert.main([str(pred), str(tmp_path / workers), "--to", "rle", "--workers", workers]) == 0
    assert (tmp_path / "1" / "masks.jsonl").read_bytes() == (tmp_path / "2" / "masks.jsonl").read_bytes()


def test_a_cut_off_file_goes_on(world, tmp_path):
    pred = world.predict(tmp_path / "p", target)
    run(pred, tmp_path / "a", "--to", "rle")
    path = tmp_path / "a" / "masks.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert run(pred, tmp_path / "a", "--to", "rle") == 0
    assert path.read_bytes() == whole


def test_a_half_written_folder_is_written_again(world, tmp_path, capsys):
    pred = world.predict(tmp_path / "p", target)
    run(pred, tmp_path / "a", "--to", "png1")
    whole = pixels(tmp_path / "a" / "Annotations")
    half = tmp_path / "a" / "Annotations" / "MOSE" / "b" / "1"
    half.rename(half.with_name(".1.partial"))
    (half.with_name(".1.partial") / "00000.png").write_bytes(b"half")
    capsys.readouterr()
    assert run(pred, tmp_path / "a", "--to", "png1") == 0
    assert "1 samples converted to png1, 5 were there" in capsys.readouterr().out
    assert pixels(tmp_path / "a" / "Annotations") == whole


def test_the_rest_of_a_run_folder_comes_along(world, tmp_path):
    world.predict(tmp_path / "run" / "Annotations", target)
    line = json.dumps({"video": "MOSE/b", "exp_id": "0"}) + "\n"
    (tmp_path / "run" / "predictions.jsonl").write_text(line)
    assert run(tmp_path / "run", tmp_path / "a", "--to", "rle") == 0
    assert (tmp_path / "a" / "predictions.jsonl").read_text() == line


def test_values_of_one_become_255_and_are_noted(world, tmp_path, capsys):
    pred = world.predict(tmp_path / "p", target, value=1)
    assert run(pred, tmp_path / "a", "--to", "png") == 0
    assert "stored as 0/1 and are 0/255 now" in capsys.readouterr().out
    sample = open_dataset("revos", world.root, split="valid")[0]
    assert set(np.unique(open_predictions(tmp_path / "a").read(sample, 0))) == {0, 255}


def test_what_is_missing_or_broken_is_named_and_the_rest_converted(world, tmp_path, capsys):
    pred = world.predict(tmp_path / "p", target)
    shutil.rmtree(pred / "UVO/all/-a_1/2")
    path = pred / "MOSE/b/1/00001.png"
    path.write_bytes(path.read_bytes()[:-20])
    Image.fromarray(np.array([[0, 1, 2]] * 24, np.uint8)).resize((31, 24), 0).save(pred / "UVO/all/-a_1/0/00005.png")
    assert run(pred, tmp_path / "a", "--to", "rle", "--gt", world.root) == 2
    said = capsys.readouterr()
    assert "no folder UVO/all/-a_1/2" in said.err
    assert "cut off" in said.err
    assert "UVO/all/-a_1/0, frame 00005 holds several grey values (1, 2, …)" in said.err
    assert "3 samples converted to rle, 0 were there, 1 missing, 2 broken" in said.out
    keys = [json.loads(line)["exp_id"] for line in (tmp_path / "a" / "masks.jsonl").read_text().splitlines()]
    assert keys == ["1", "10", "0"]


def test_what_cannot_be_done_is_said(world, tmp_path, capsys):
    pred = world.predict(tmp_path / "p", target)
    run(pred, tmp_path / "a", "--to", "rle")
    assert run(tmp_path / "a", tmp_path / "b", "--to", "png") == 2
    assert "knows no frame names" in capsys.readouterr().err
    assert run(pred, tmp_path / "a", "--to", "png") == 2
    assert "holds another conversion" in capsys.readouterr().err
    assert run(tmp_path / "a", pred, "--to", "rle", "--gt", world.root) == 2
    assert "not empty" in capsys.readouterr().err
    shutil.copy(pred / "MOSE/b/1/00001.png", pred / "00001.png")
    assert run(pred, tmp_path / "c", "--to", "rle") == 2
    assert "PNGs belong into" in capsys.readouterr().err


def test_masks_that_changed_since_they_were_converted_are_no_part_of_the_same_conversion(world, tmp_path, capsys):
    """The first sample is converted, then all are predicted anew: to go on would mix two predictions."""
    pred, gt = world.predict(tmp_path / "p", target), ("--gt", world.root)
    assert run(pred, tmp_path / "rle", "--to", "rle", *gt) == 0
    sample = open_dataset("revos", world.root, split="valid")[0]
    shutil.copytree(tmp_path / "rle", tmp_path / "source")
    for form, source in (("png1", pred), ("png", tmp_path / "source")):
        assert run(source, tmp_path / form, "--to", form, *gt) == 0
    shutil.rmtree(tmp_path / "png1/Annotations/MOSE")
    path = pred / sample.video / sample.exp_id / f"{sample.frames[0]}.png"
    Image.new("L", sample.size[::-1], 255).save(path)
    lines = tmp_path / "source/masks.jsonl"
    lines.write_text(
        lines.read_text()
        + json.dumps({**json.loads(lines.read_text().splitlines()[0]), "counts": [None] * len(sample)})
        + "\n"
    )
    for form, source in (("rle", pred), ("png1", pred), ("png", tmp_path / "source")):
        before = pixels(tmp_path / form)
        assert run(source, tmp_path / form, "--to", form, *gt) == 2
        assert f"the masks of 1 samples, first {sample.key}, have changed in" in capsys.readouterr().err
        assert pixels(tmp_path / form) == before


def test_a_mask_that_was_lost_may_come_from_masks_written_anew(world, tmp_path, capsys):
    pred, gt = world.predict(tmp_path / "p", target), ("--gt", world.root)
    assert run(pred, tmp_path / "a", "--to", "png1", *gt) == 0
    whole = pixels(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/Annotations/MOSE")
    for path in (pred / "MOSE").rglob("*.png"):
        path.write_bytes(path.read_bytes())
    assert run(pred, tmp_path / "a", "--to", "png1", *gt) == 0
    assert pixels(tmp_path / "a") == whole
    assert run(pred, tmp_path / "a", "--to", "png1", *gt) == 0
    assert "0 samples converted to png1, 6 were there" in capsys.readouterr().out
