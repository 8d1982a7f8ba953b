"""The ViCaS twin: the world's truths, scored frames among others, referrals of several tracks."""

import pytest

from demo.twins import GT_EVERY, write_vicas
from veason.datasets import open_dataset


@pytest.fixture(scope="module")
def twin(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("twins") / "vicas"
    write_vicas(world.root, out)
    return out


def test_tracks_are_the_worlds(world, twin):
    original = [s for s in open_dataset("revos", world.root, split="train") if s.anno_ids]
    dataset = open_dataset("vicas", twin, split="v1.0/train")
    theirs = iter(original)
    source, several = open_dataset("revos", world.root, split="train"), 0
    for sample in dataset:
        several += len(sample.anno_ids) > 1
        if sample.expression == "everything that was asked for":
            continue
        assert dataset.object_rles(sample) == source.object_rles(next(theirs))
    assert next(theirs, None) is None
    assert several > 0


def test_few_frames_count_and_tracks_come_and_go(twin):
    dataset = open_dataset("vicas", twin, split="v1.0/train")
    for sample in dataset:
        assert dataset.gt_frames(sample) == tuple(range(0, len(sample), GT_EVERY))
        assert sample.frames[0] == "00000"
    tracks = [track for sample in dataset for track in dataset.object_rles(sample)]
    assert any(None in track and any(track) for track in tracks)


def test_valid_videos_are_shared_between_val_and_test(world, twin):
    parts = {part: open_dataset("vicas", twin, split=f"v1.0/{part}").by_video for part in ("val", "test")}
    assert not parts["val"].keys() & parts["test"].keys()
    assert len(parts["val"]) + len(parts["test"]) == len(world.metas["valid"])
