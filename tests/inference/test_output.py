"""The run folder: any order in, the data set's order out; PNGs of 8 bits or 1, or lines of RLEs."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from inference import pipeline
from inference.output import MASKS, RunFolder, Shard, pack
from inference.pipeline import Sampling
from veason import mask_lines
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.policies.oracle import OraclePolicy
from veason.trackers import open_tracker


@pytest.fixture
def dataset(hand_made):
    return open_dataset("revos", hand_made.write(), split="valid")


@pytest.fixture
def finished(dataset):
    """Two videos of three expressions each, the second one the first by another name."""
    samples = [replace(s, video=video) for video in ("UVO/-a_b", "b") for s in dataset]
    done = pipeline.run(
        list(dataset), policy=OraclePolicy(dataset), tracker=open_tracker("grabcut"), sampling=Sampling(3, (56, 56))
    )
    by_exp = {item.prediction.sample.exp_id: item for item in done}
    return [replace(by_exp[s.exp_id], prediction=replace(by_exp[s.exp_id].prediction, sample=s)) for s in samples]


def folder(path, finished, masks="png", shard=None):
    samples = [item.prediction.sample for item in finished]
    return RunFolder(
        path, shard=shard or Shard(), samples=samples, record={"settings": {}, "versions": {}}, masks=masks
    )


def write(path, finished, order, masks="png"):
    with folder(path, finished, masks) as out:
        for i in order:
            out.keep(pack(finished[i], masks=masks))
        return out.join()


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("masks", MASKS)
def test_any_order_gives_the_same_folder(finished, tmp_path, masks):
    assert write(tmp_path / "order", finished, range(6), masks)
    assert not write(tmp_path / "mixed", finished, [4, 0, 3], masks)
    assert write(tmp_path / "mixed", finished, [5, 2, 1], masks)
    assert contents(tmp_path / "mixed") == contents(tmp_path / "order")


def test_a_prefix_in_order_is_not_written_again(finished, tmp_path):
    """One process writes in order: the journal of a finished run is the very file."""
    with folder(tmp_path, finished) as out:
        before = (tmp_path / "predictions.jsonl").stat().st_ino
        for item in finished:
            out.write(item)
        out.join()
    assert (tmp_path / "predictions.jsonl").stat().st_ino == before


@pytest.mark.parametrize("masks", MASKS)
def test_a_sample_killed_between_its_lines_stands_once(finished, tmp_path, masks):
    write(tmp_path / "whole", finished, range(6), masks)
    write(tmp_path / "killed", finished, range(3), masks)
    path = tmp_path / "killed" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))  # masks and timing of the third are there, its line is not
    with folder(tmp_path / "killed", finished, masks) as out:
        assert out.done == {"UVO/-a_b/0", "UVO/-a_b/1"}
    assert write(tmp_path / "killed", finished, [5, 2, 3, 4], masks)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_shards_that_write_in_any_order_join(finished, tmp_path):
    write(tmp_path / "whole", finished, range(6), "rle")
    for index, order, whole in ((1, [5, 3, 4], False), (0, [2, 0, 1], True)):
        with folder(tmp_path / "parts", finished, "rle", Shard(index, 2)) as out:
            for i in order:
                out.write(finished[i])
            assert out.join() == whole
    for name in ("predictions", "timings", "masks"):
        assert (tmp_path / "parts" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "whole" / f"{name}.jsonl"
        ).read_bytes()


@pytest.mark.parametrize("bits", ["png", "png1"])
def test_pngs_read_back_as_0_and_255(finished, tmp_path, bits):
    write(tmp_path, finished, range(6), bits)
    for i in (0, 2):  # the square; the absent dog
        sample, track = finished[i].prediction.sample, finished[i].prediction.track
        data = (tmp_path / "Annotations" / sample.key / "00005.png").read_bytes()
        assert data[24] == (1 if bits == "png1" else 8)  # bit depth, in the IHDR chunk
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, track.union(1) * 255)


def test_lines_hold_the_same_masks(finished, tmp_path):
    write(tmp_path, finished, range(6), "rle")
    assert not (tmp_path / "Annotations").exists()
    lines = [json.loads(line) for line in (tmp_path / mask_lines.FILE).read_text().splitlines()]
    assert [(line["video"], line["exp_id"]) for line in lines] == [(v, e) for v in ("UVO/-a_b", "b") for e in "012"]
    assert lines[2]["counts"] == [None] * 4
    assert lines[0]["size"] == [48, 64]
    for line, item in zip(lines, finished, strict=True):
        parsed = mask_lines.parse(line, "here")
        for t, union in enumerate(item.prediction.track.unions()):
            rle = parsed.rle(t)
            assert (rle is not None) == union.any()
            assert rle is None or np.array_equal(mask_lines.masks.decode(rle, (48, 64)), union)


@pytest.mark.parametrize("odd", ["another run's", "a double"])
def test_a_journal_of_something_else_is_refused(finished, tmp_path, odd):
    write(tmp_path, finished, [0, 1])
    path = tmp_path / "predictions.jsonl"
    line = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + (line.replace("UVO/-a_b", "c") if odd == "another run's" else line) + "\n")
    with pytest.raises(DataError, match="is not this run's, or stands twice"), folder(tmp_path, finished):
        pass
