"""Twins of a synthetic world: the same truths under other benchmarks' names, and no half-written folder."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from demo import twins
from demo import world as command
from demo.twins import GT_EVERY, flat, write_refdavis, write_refytvos, write_vicas
from veason import masks
from veason.datasets import open_dataset
from veason.errors import DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A world and its twins, as the command writes them."""
    out = tmp_path_factory.mktemp("twins")
    arguments = ["--videos", "8", "--size", "84x112", "--max-frames", "8", "--seed", "3", "--no-policy"]
    assert command.main(["--out", str(out), *arguments, "--formats", "mevis", "reasonvos"]) == 0
    return out


def truths(dataset, *, name=str):
    """Returns the expressions of each video and the true mask of each frame, as far as every format holds them."""
    return {
        (name(sample.video), sample.expression, sample.size): [
            masks.merge(frame) for frame in zip(*dataset.object_rles(sample), strict=True)
        ]
        for sample in dataset
        if sample.anno_ids
    }


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [("mevis", "train", "train"), ("mevis", "valid_u", "valid"), ("reasonvos", None, "valid")],
)
def test_a_twin_asks_and_answers_the_same(folders, name, split, source):
    there = truths(open_dataset("revos", folders / "revos", split=source), name=flat)
    here = truths(open_dataset(name, folders / name, split=split))
    assert here == there
    assert len(here) > 10


def test_mevis_counts_frames_from_zero_and_has_no_types(folders):
    meta = json.loads((folders / "mevis/train/meta_expressions.json").read_text())
    assert all(
        video["frames"] == [f"{t:05d}" for t in range(len(video["frames"]))] for video in meta["videos"].values()
    )
    expressions = [e for video in meta["videos"].values() for e in video["expressions"].values()]
    assert all(e.keys() == {"exp", "obj_id", "anno_id"} and e["anno_id"] for e in expressions)
    for sample in open_dataset("mevis", folders / "mevis", split="train"):
        assert all(sample.frame_path(t).is_file() for t in range(len(sample)))


def test_mevis_valid_is_without_masks(folders):
    assert not (folders / "mevis/valid/mask_dict.json").exists()
    dataset = open_dataset("mevis", folders / "mevis", split="valid")
    assert len(dataset) == len(open_dataset("mevis", folders / "mevis"))
    assert not any(sample.anno_ids for sample in dataset)


def test_reasonvos_has_lists_textual_ids_and_both_encodings(folders):
    meta = json.loads((folders / "reasonvos/meta_expressions.json").read_text())
    expressions = [e for video in meta["videos"].values() for e in video["expressions"]]
    assert all(isinstance(e["obj_id"], str) for e in expressions)
    assert {len(e["obj_id"]) for e in expressions} == {1, 2}
    assert {e["is_sent"] for e in expressions} == {True, False}
    assert {video["source"] for video in meta["videos"].values()} == {"vipseg", "burst"}
    both = [(folders / "reasonvos" / name).read_bytes() for name in ("meta_expressions.json", "meta_expressions_.json")]
    assert both[0] == both[1]
    pngs = list((folders / "reasonvos/Annotations").rglob("*.png"))
    assert {int(cv2.imread(str(png), cv2.IMREAD_GRAYSCALE).max()) for png in pngs} - {0} == {1, 255}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["mevis", "reasonvos"])
def test_the_same_world_gives_the_same_bytes_whole_or_not_at_all(folders, tmp_path, monkeypatch, name):
    again = twins.build_twin(name, folders / "revos", tmp_path / "again")
    assert digests(again) == digests(folders / name)
    before = digests(again)
    with monkeypatch.context() as patch:
        patch.setitem(twins.WRITERS, name, None)
        assert twins.build_twin(name, folders / "revos", again) == again  # already there: nothing is written
    assert digests(again) == before
    monkeypatch.setattr(twins.atomic, "write_json", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        twins.build_twin(name, folders / "revos", tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_another_folder_is_refused(folders, tmp_path, capsys):
    (tmp_path / "mevis").mkdir()
    (tmp_path / "mevis/mine.txt").write_text("x")
    with pytest.raises(DataError, match="holds something other"):
        twins.build_twin("mevis", folders / "revos", tmp_path / "mevis")
    assert (tmp_path / "mevis/mine.txt").read_text() == "x"
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "--formats", "davis"])
    assert "invalid choice: 'davis'" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- Ref-YouTube-VOS and Ref-DAVIS17


@pytest.fixture(scope="module")
def refvos(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("twins")
    write_refytvos(world.root, out / "refytvos")
    write_refdavis(world.root, out / "refdavis")
    return out


def test_training_targets_are_the_worlds_but_for_shared_borders(world, refvos):
    original = open_dataset("revos", world.root, split="train")
    twin = open_dataset("refytvos", refvos / "refytvos", split="train")
    single = [sample for sample in original if len(sample.anno_ids) == 1]
    assert len(twin) == len(single) > 20
    for mine, theirs in zip(twin, single, strict=True):
        assert (mine.expression, mine.frames, mine.size) == (theirs.expression, theirs.frames, theirs.size)
        assert mine.frame_path(0).read_bytes() == theirs.frame_path(0).read_bytes()
        (found,), (truth,) = twin.object_rles(mine), original.object_rles(theirs)
        for t in range(len(mine)):
            pixels = masks.decode(found[t], mine.size)
            assert not (pixels & ~masks.decode(truth[t], mine.size)).any()  # never more than the truth
            assert masks.area(truth[t]) - np.count_nonzero(pixels) <= 0.2 * masks.area(truth[t])


def test_the_last_video_of_valid_is_tests(world, refvos):
    twin = open_dataset("refytvos", refvos / "refytvos")
    assert len(twin.left_out) == 1
    assert len(twin.by_video) == len(world.metas["valid"]) - 1
    assert all(sample.obj_ids == () for sample in twin)


def test_every_object_of_the_first_frame_is_named_four_times(refvos):
    twin = open_dataset("refdavis", refvos / "refdavis")
    for samples in twin.by_video.values():
        objects = twin.objects(samples[0])
        assert [sample.obj_ids for sample in samples] == [(k + 1,) for k in range(len(objects)) for _ in range(4)]
        assert len({sample.expression for sample in samples}) == len(samples)
        assert all(masks.area(track[0]) for track in objects)


# ---------------------------------------------------------------------------------------------------------------- ViCaS


@pytest.fixture(scope="module")
def vicas(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("twins") / "vicas"
    write_vicas(world.root, out)
    return out


def test_tracks_are_the_worlds(world, vicas):
    original = [s for s in open_dataset("revos", world.root, split="train") if s.anno_ids]
    dataset = open_dataset("vicas", vicas, split="v1.0/train")
    theirs = iter(original)
    source, several = open_dataset("revos", world.root, split="train"), 0
    for sample in dataset:
        several += len(sample.anno_ids) > 1
        if sample.expression == "everything that was asked for":
            continue
        assert dataset.object_rles(sample) == source.object_rles(next(theirs))
    assert next(theirs, None) is None
    assert several > 0


def test_few_frames_count_and_tracks_come_and_go(vicas):
    dataset = open_dataset("vicas", vicas, split="v1.0/train")
    for sample in dataset:
        assert dataset.gt_frames(sample) == tuple(range(0, len(sample), GT_EVERY))
        assert sample.frames[0] == "00000"
    tracks = [track for sample in dataset for track in dataset.object_rles(sample)]
    assert any(None in track and any(track) for track in tracks)


def test_valid_videos_are_shared_between_val_and_test(world, vicas):
    parts = {part: open_dataset("vicas", vicas, split=f"v1.0/{part}").by_video for part in ("val", "test")}
    assert not parts["val"].keys() & parts["test"].keys()
    assert len(parts["val"]) + len(parts["test"]) == len(world.metas["valid"])
