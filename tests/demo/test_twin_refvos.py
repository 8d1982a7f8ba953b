"""Twins with one object an expression: the same truths as the world's own files."""

import numpy as np
import pytest

from demo.twins import write_refdavis, write_refytvos
from veason import masks
from veason.datasets import open_dataset


@pytest.fixture(scope="module")
def twins(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("twins")
    write_refytvos(world.root, out / "refytvos")
    write_refdavis(world.root, out / "refdavis")
    return out


def test_training_targets_are_the_worlds_but_for_shared_borders(world, twins):
    original = open_dataset("revos", world.root, split="train")
    twin = open_dataset("refytvos", twins / "refytvos", split="train")
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


def test_the_last_video_of_valid_is_tests(world, twins):
    twin = open_dataset("refytvos", twins / "refytvos")
    assert len(twin.left_out) == 1
    assert len(twin.by_video) == len(world.metas["valid"]) - 1
    assert all(sample.obj_ids == () for sample in twin)


def test_every_object_of_the_first_frame_is_named_four_times(twins):
    twin = open_dataset("refdavis", twins / "refdavis")
    for samples in twin.by_video.values():
        objects = twin.objects(samples[0])
        assert [sample.obj_ids for sample in samples] == [(k + 1,) for k in range(len(objects)) for _ in range(4)]
        assert len({sample.expression for sample in samples}) == len(samples)
        assert all(masks.area(track[0]) for track in objects)
