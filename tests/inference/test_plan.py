"""The units that a distributed run hands out."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inference.distributed import plan
from veason.types import VideoSample


def samples(*videos):
    """Expressions of some videos, each (name, frames, expressions)."""
    return [
        VideoSample("revos", name, str(e), "x", tuple(map(str, range(frames))), Path(name), (4, 4))
        for name, frames, count in videos
        for e in range(count)
    ]


def test_long_videos_come_first_and_units_end_with_their_video():
    found = plan(samples(("a", 3, 3), ("b", 9, 2), ("c", 5, 1)), done=(), batch_size=1, workers=1)
    # 6 samples for one worker: at most 6 // 4 = 1 a unit
    assert [(unit.video, unit.batches) for unit in found] == [
        ("b", (3,)), ("b", (4,)), ("c", (5,)), ("a", (0,)), ("a", (1,)), ("a", (2,)),
    ]  # fmt: skip


def test_a_unit_has_eight_samples_at_most():
    found = plan(samples(("a", 3, 20), ("b", 3, 180)), done=(), batch_size=2, workers=2)
    assert [len(unit.batches) for unit in found][:4] == [4, 4, 2, 4]  # 8, 8 and 4 samples of a; then b
    assert [unit.video for unit in found][:4] == ["a", "a", "a", "b"]


def test_batches_of_which_a_part_is_done_are_asked_again_whole():
    found = plan(samples(("a", 3, 6)), done={"a/0", "a/1", "a/2"}, batch_size=2, workers=1)
    assert [unit.batches for unit in found] == [(1,), (2,)]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.data(),
)
def test_every_batch_that_is_wanted_is_in_one_unit(videos, batch_size, workers, data):
    listed = samples(*((f"v{i}", frames, count) for i, (frames, count) in enumerate(videos)))
    done = data.draw(st.sets(st.sampled_from([s.key for s in listed])))
    found = plan(listed, done=done, batch_size=batch_size, workers=workers)
    cut = [listed[i : i + batch_size] for i in range(0, len(listed), batch_size)]
    wanted = [b for b, batch in enumerate(cut) if any(s.key not in done for s in batch)]
    assert sorted(b for unit in found for b in unit.batches) == wanted
