"""RLEs by hand and against NumPy on random masks."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from veason import masks


@pytest.fixture(params=["plain", "numba"])
def reading(request):
    """Masks read by NumPy and pycocotools, or by numba."""
    if masks.use_compiled(request.param == "numba") != (request.param == "numba"):
        pytest.skip("numba is not installed")
    yield request.param
    masks.use_compiled(False)


SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For tests of both readings: the fixture holds for all examples."""

SMALL = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size: arrays(bool, size))


def picture(*rows: str) -> np.ndarray:
    return np.array([[char == "#" for char in row] for row in rows])


def test_area_and_box_of_a_drawn_mask():
    rle = masks.encode(picture("....", ".##.", ".#.."))
    assert masks.area(rle) == 3
    assert masks.box(rle) == (1.0, 1.0, 2.0, 2.0)  # inclusive corners


def test_one_pixel_has_a_box_of_one_pixel():
    assert masks.box(masks.encode(picture("..", ".#"))) == (1.0, 1.0, 1.0, 1.0)


def test_absent_and_empty_masks_have_no_box():
    assert masks.box(None) is None
    assert masks.box(masks.encode(picture("..", ".."))) is None
    assert masks.area(None) == 0


@given(SMALL)
def test_decode_is_the_inverse_of_encode(mask):
    assert np.array_equal(masks.decode(masks.encode(mask), mask.shape), mask)


@given(SMALL)
def test_area_and_box_agree_with_the_pixels(mask):
    rle = masks.encode(mask)
    assert masks.area(rle) == mask.sum()
    if mask.any():
        rows, columns = np.nonzero(mask)
        assert masks.box(rle) == (columns.min(), rows.min(), columns.max(), rows.max())


@given(SMALL)
def test_runs_are_the_runs_of_the_columns(mask):
    counts = masks.runs(masks.encode(mask)["counts"])
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts), mask.ravel(order="F"))


@given(st.integers(1, 12).flatmap(lambda n: st.lists(arrays(bool, (n, n + 1)), min_size=1, max_size=4)))
def test_union_is_any(stack):
    rles = [masks.encode(mask) for mask in stack]
    assert np.array_equal(masks.union([*rles, None], stack[0].shape), np.any(stack, axis=0))


def test_union_of_nothing_is_empty():
    assert not masks.union([], (3, 4)).any()
    assert masks.union([None], (3, 4)).shape == (3, 4)
    assert masks.merge([None, None]) is None


def test_iou_by_hand():
    a, b = picture("##..", "##.."), picture(".##.", ".##.")
    assert masks.iou(a, b) == 2 / 6
    assert masks.iou(a & False, a & False) == 1.0  # both empty
    assert masks.iou(a, a & False) == 0.0
    with pytest.raises(ValueError, match="two sizes"):
        masks.iou(a, b.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [4, 3]}, r"the mask is \[4, 3\], the video is \[3, 4\]"),
        ({"counts": [1, 2]}, "counts is list"),
        ({"counts": ""}, "empty"),
        ({"counts": "1\u00e9"}, "outside '0' to 'o'|cut off"),
        ({"counts": "o"}, "cut off"),
        ({"counts": "5"}, "cover 5 pixels, the video has 12"),
        ({"counts": "ooooooo0"}, "30 bits"),
        ({"counts": "O"}, "negative"),
    ],
)
def test_a_bad_rle_is_named(change, message):
    rle = {**masks.encode(np.zeros((3, 4), bool)), **change}
    with pytest.raises(ValueError, match=message) as error:
        masks.check(rle, (3, 4), "file.json: annotation 7")
    assert str(error.value).startswith("file.json: annotation 7")


CODES = st.text(alphabet=[chr(c) for c in range(47, 113)], max_size=12)
HOSTILE = [
    "",
    "o",
    "ooooo",
    "oooooo",
    "oooooo0",
    "oooooO",
    "O",
    "0O",
    "<0",
    "00<",
    "0<0",
    "<1N",
    "\u00e9",
    "<\u0660",
    "5",
    "~",
]
HOSTILE += ["oooooo?" * 3, "PPPPP7", "PPPPP7" * 4, "1" * 40, "0" * 40, "<\0", " ", "\ud800", "<<NN"]
FRAME = st.one_of(
    st.none(),
    arrays(bool, (3, 4)).map(masks.encode),
    st.one_of(CODES, st.sampled_from(HOSTILE)).map(lambda counts: {"size": [3, 4], "counts": counts}),
    st.sampled_from([17, {}, {"size": [4, 3], "counts": "<"}, {"size": [3, 4], "counts": b"<"}]),
)


def outcome(check):
    try:
        return check()
    except ValueError as error:
        return str(error)


@given(st.lists(FRAME, max_size=5))
@example([{"size": [3, 4], "counts": counts} for counts in ("<", "1K")])
@SHARED
def test_a_track_is_checked_as_frame_by_frame(reading, rles):
    """All frames at one time, with the masks or the words of `check` for each."""
    naive = outcome(
        lambda: tuple(None if rle is None else masks.check(rle, (3, 4), f"x, frame {t}") for t, rle in enumerate(rles))
    )
    assert outcome(lambda: masks.check_track(rles, (3, 4), "x")) == naive


@pytest.mark.parametrize("counts", HOSTILE)
def test_a_hostile_string_is_refused_with_the_same_words_by_both_readings(reading, counts):
    """Among sound masks, at either end: what follows it in memory must not complete it."""
    sound = masks.encode(np.eye(3, 4) > 0)
    bad = {"size": [3, 4], "counts": counts}
    try:
        expected = masks.check(bad, (3, 4), "x, frame 1")
    except ValueError as error:
        expected = str(error)
    for rles in ([sound, bad, sound], [sound, bad]):
        found = outcome(lambda rles=rles: masks.check_track(rles, (3, 4), "x"))
        assert (found if isinstance(expected, str) else found[1]) == expected


def test_a_long_track_is_checked_in_pieces(monkeypatch, reading):
    monkeypatch.setattr(masks, "_AT_ONCE", 8)
    rles = [masks.encode(np.eye(3, 4) > 0), None] * 3
    assert masks.check_track(rles, (3, 4), "x") == tuple(rles)
    rles[4] = {"size": [3, 4], "counts": "5"}
    with pytest.raises(ValueError, match="x, frame 4: the runs cover 5 pixels"):
        masks.check_track(rles, (3, 4), "x")


def test_something_else_than_an_rle_is_named():
    with pytest.raises(ValueError, match="expected an RLE"):
        masks.check(17, (3, 4), "here")


@given(st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=30))
def test_no_run_string_crashes(counts):
    """Whatever passes the check has the right number of pixels, so pycocotools can decode it."""
    try:
        rle = masks.check({"size": [5, 7], "counts": counts}, (5, 7), "x")
    except ValueError:
        return
    assert masks.decode(rle, (5, 7)).shape == (5, 7)


# runs of no length, which some writers put between two others


def from_runs(counts, size):
    """The RLE of run lengths as they are, zeros among them."""
    made = coco.frPyObjects({"size": list(size), "counts": list(counts)}, *size)
    return {"size": list(size), "counts": made["counts"].decode()}


def test_a_run_of_no_length_is_no_pixel():
    """The masks have 3 x 4 pixels, column by column: one holds 2 and 5, the other 7 alone, and both have empty runs."""
    two, one = from_runs([2, 1, 2, 0, 0, 1, 6], (3, 4)), from_runs([5, 0, 2, 1, 4], (3, 4))
    assert masks.area(two) == 2
    assert masks.box(two) == (0.0, 2.0, 1.0, 2.0)
    assert masks.box(one) == (2.0, 1.0, 2.0, 1.0)
    assert np.flatnonzero(masks.union([two, one], (3, 4)).ravel(order="F")).tolist() == [2, 5, 7]


def test_a_union_of_three_goes_on_behind_a_run_of_no_length():
    """The first two meet in runs of no length after pixel 5 of 6 x 8; what they say of the rest is not lost."""
    raw = [
        from_runs([2, 1, 2, 0, 0, 1, 42], (6, 8)),
        from_runs([5, 0, 0, 2, 41], (6, 8)),
        from_runs([40, 8], (6, 8)),
    ]
    union = masks.union(raw, (6, 8)).ravel(order="F")
    assert np.flatnonzero(union).tolist() == [2, 5, 6, *range(40, 48)]


@st.composite
def stacks(draw):
    """Up to three lists of run lengths of one size, with zeros anywhere; and the size."""
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    runs = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.lists(st.integers(0, size[0] * size[1]), max_size=9)))
        runs.append(np.diff([0, *cuts, size[0] * size[1]]).tolist())
    return runs, size


@given(stacks())
@SHARED
def test_every_walk_over_runs_agrees_with_decoding(reading, stack):
    runs, size = stack
    pixels = [
        np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F") for counts in runs
    ]  # by definition of a run
    raw = [from_runs(counts, size) for counts in runs]
    for rles in (raw, [masks.check(rle, size, "x") for rle in raw], masks.check_track(raw, size, "x")):
        for rle, mask in zip(rles, pixels, strict=True):
            assert np.array_equal(masks.decode(rle, size), mask)
            assert masks.area(rle) == mask.sum()
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max(), rows.max()) if mask.any() else None
            assert masks.box(rle) == box
        assert np.array_equal(masks.union(rles, size), np.any(pixels, axis=0))
        assert masks.area(masks.merge(rles)) == np.any(pixels, axis=0).sum()
    assert all(masks.runs(rle["counts"])[1:].all() for rle in masks.check_track(raw, size, "x"))


# what tracks have in common


@st.composite
def two_sets_of_tracks(draw):
    """(A, T, H, W) and (B, T, H, W) bool, at most 3 tracks each; some masks absent, which are all False."""
    frames, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    counts = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    return [draw(arrays(bool, (count, frames, height, width))) for count in counts]


@given(two_sets_of_tracks())
@SHARED
def test_shared_areas_are_those_of_the_pixels(reading, tracks):
    a, b = tracks
    encoded = [[[masks.encode(m) if m.any() else None for m in track] for track in some] for some in (a, b)]
    assert reading == "plain" or masks._run_ends(encoded[0]) is not None  # or pycocotools would stand in
    areas_a, areas_b, shared = masks.shared_areas(*encoded)
    assert areas_a.tolist() == a.sum(axis=(1, 2, 3)).tolist()
    assert areas_b.tolist() == b.sum(axis=(1, 2, 3)).tolist()
    assert shared.shape == (len(a), len(b))
    assert shared.tolist() == [[int((x & y).sum()) for y in b] for x in a]
    assert shared.dtype == areas_a.dtype == np.int64


def test_shared_areas_of_an_empty_mask_that_is_written_out(reading):
    nothing, everything = masks.encode(np.zeros((5, 7))), masks.encode(np.ones((5, 7)))
    areas, _, shared = masks.shared_areas([[nothing, everything], [None, None]], [[everything, everything]])
    assert (areas.tolist(), shared.tolist()) == ([35, 0], [[35], [0]])


def test_tracks_of_different_lengths_share_nothing(reading):
    with pytest.raises(ValueError, match=r"tracks of \[1, 2\] frames"):
        masks.shared_areas([[None]], [[None, None]])


def test_what_is_too_much_at_one_time_is_shared_all_the_same(reading, monkeypatch):
    rle = masks.encode(np.eye(3, 4) > 0)
    monkeypatch.setattr(masks, "_AT_ONCE", 8)
    assert masks.shared_areas([[rle] * 3], [[rle, None, rle]])[2].tolist() == [[6]]


def test_a_size_of_floats_that_equals_the_videos_is_read_as_whole_numbers(reading):
    """JSON writers make 720.0 of 720; nothing behind the check can use it."""
    written = {**masks.encode(np.eye(3, 4) > 0), "size": [3.0, 4.0]}
    for rle in (masks.check(written, (3, 4), "x"), *masks.check_track([written], (3, 4), "x")):
        assert [type(side) for side in rle["size"]] == [int, int]
        assert masks.shared_areas([[rle]], [[rle]])[2].tolist() == [[3]]
        assert np.array_equal(masks.decode(rle, (3, 4)), np.eye(3, 4) > 0)
