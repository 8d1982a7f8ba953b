"""J and F: worked by hand, and equal to the plain definition to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks import plain_metrics
from eval import metrics


@pytest.fixture(autouse=True, scope="module", params=["NumPy", "numba"])
def path(request):
    """Every test runs on both ways of dilating."""
    if request.param == "numba" and not metrics.use_compiled():
        pytest.skip("numba is not installed")
    yield
    metrics.use_compiled(False)


def mask(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_region_similarity_is_intersection_over_union():
    pred = mask("....", ".##.", ".##.")
    gt = mask("....", ".###", ".###")
    assert metrics.region_similarity(pred, gt) == 4 / 6


def test_two_empty_masks_agree():
    nothing = np.zeros((5, 7), bool)
    assert metrics.j_and_f(nothing, nothing) == (1.0, 1.0)
    assert metrics.region_similarity(nothing, nothing) == metrics.boundary_measure(nothing, nothing) == 1.0


def test_boundary_of_a_pixel_is_it_and_three_up_and_left():
    pred = mask(".....", ".....", "..#..", ".....", ".....")  # boundary (1,1) (1,2) (2,1) (2,2)
    gt = mask(".....", ".....", "....#", ".....", ".....")  # boundary (1,3) (1,4) (2,3) (2,4); radius 1
    assert metrics.tolerance((5, 5)) == 1
    assert metrics.j_and_f(pred, gt) == (0.0, 0.5)  # two of four match on either side


def test_precision_and_recall_differ():
    pred = mask("#....", ".....", ".....", ".....", ".....")  # boundary (0,0)
    gt = mask(".....", ".#...", ".....", ".....", ".....")  # boundary (0,0) (0,1) (1,0) (1,1): three within 1
    assert metrics.boundary_measure(pred, gt) == 2 * 1 * 0.75 / 1.75


def test_last_row_looks_right_and_last_column_below_only():
    pred = mask(".....", ".....", ".....", ".....", "....#")  # boundary (3,3) (3,4) (4,3), never the corner
    gt = mask(".....", ".....", ".....", "...#.", ".....")  # boundary (2,2) (2,3) (3,2) (3,3)
    assert metrics.boundary_measure(pred, gt) == 2 * 1.0 * 0.75 / 1.75  # (2,2) is out of reach


def test_a_full_frame_has_no_boundary():
    full, nothing = np.ones((6, 9), np.uint8), np.zeros((6, 9), np.uint8)
    assert metrics.j_and_f(full, nothing) == (0.0, 1.0)
    assert metrics.j_and_f(full, full) == (1.0, 1.0)
    spot = nothing.copy()
    spot[3, 3] = 1
    assert metrics.j_and_f(full, spot) == (1 / 54, 0.0)
    assert metrics.j_and_f(nothing, spot) == metrics.j_and_f(spot, nothing) == (0.0, 0.0)


@pytest.mark.parametrize(("size", "radius"), [((480, 854), 8), ((1080, 1920), 18), ((1, 1), 1), ((75, 100), 1)])
def test_tolerance_is_rounded_up(size, radius):
    assert metrics.tolerance(size) == radius


def test_any_nonzero_value_is_inside():
    pred = np.array([[0, 1, 255], [0, 2, 0]], np.uint8)
    assert metrics.j_and_f(pred, pred != 0) == (1.0, 1.0)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\)"):
        metrics.j_and_f(np.zeros((3, 4), bool), np.zeros((4, 3), bool))


def random_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A blob, a hole, noise, a line, a point, nothing or everything."""
    height, width = size
    rows, columns = np.ogrid[:height, :width]
    disk = ((rows - rng.integers(height)) / rng.uniform(1, 1 + height / 2)) ** 2 + (
        (columns - rng.integers(width)) / rng.uniform(1, 1 + width / 2)
    ) ** 2 <= 1
    result = np.zeros(size, bool)
    match rng.integers(9):
        case 0 | 1 | 2:
            result |= disk
        case 3:
            result = ~disk
        case 4:
            result = rng.random(size) < rng.choice([0.001, 0.05, 0.5, 0.999])
        case 5:
            result[rng.integers(height)] = True
        case 6:
            result[:, rng.integers(width)] = True
        case 7:
            result[rng.integers(height), rng.integers(width)] = True
        case _:
            result[:] = rng.random() < 0.5
    return result


def random_pair(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    pred = random_mask(rng, size)
    gt = np.roll(pred, rng.integers(-9, 10, 2), (0, 1)) if rng.random() < 0.4 else random_mask(rng, size)
    return pred, gt


def plain(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    return plain_metrics.region_similarity(pred, gt), plain_metrics.boundary_measure(pred, gt)


def check(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    expected = plain(pred, gt)
    assert metrics.j_and_f(pred, gt) == expected
    assert (metrics.region_similarity(pred, gt), metrics.boundary_measure(pred, gt)) == expected
    *scores, part = metrics.j_f_and_part(pred, gt)
    assert tuple(scores) == expected
    for mask in (pred, gt):
        assert np.count_nonzero(mask[part]) == np.count_nonzero(mask)  # nothing lies outside
    grey, count = pred.astype(np.uint8) * 255, gt.astype(np.uint8) * 2
    for stored in (grey, grey // 255, grey // 127):
        assert metrics.accuracy(stored[part], count[part], stored.size) == metrics.accuracy(stored, count)
        assert metrics.accuracy(stored, count) == float(np.mean(stored == count))
        of_part = metrics.robustness(stored[part], count[part], 70_000)
        assert of_part == metrics.robustness(stored, count, 70_000)
    return expected


def test_equal_to_the_plain_definition_on_odd_sizes():
    rng = np.random.default_rng(7)
    scores = [check(*random_pair(rng, tuple(rng.integers(1, 261, 2)))) for _ in range(1200)]
    assert sum(0 < f < 1 for _, f in scores) > 400  # not all of them trivial


@pytest.mark.parametrize(("size", "pairs"), [((480, 854), 60), ((1080, 1920), 12), ((2, 3000), 20), ((2500, 5), 20)])
def test_equal_to_the_plain_definition_on_large_frames(size, pairs):
    rng = np.random.default_rng(8)
    for _ in range(pairs):
        check(*random_pair(rng, size))


def test_equal_where_the_radius_passes_a_word():
    size = (90, 9000)  # radius 73: more than 64 pixels
    rng = np.random.default_rng(9)
    assert metrics.tolerance(size) == 73
    for _ in range(4):
        check(*random_pair(rng, size))


def test_memory_order_and_type_do_not_matter():
    rng = np.random.default_rng(10)
    for _ in range(100):
        pred, gt = random_pair(rng, (37, 70))
        expected = plain(pred, gt)
        for order in (np.ascontiguousarray, np.asfortranarray, lambda m: np.pad(m, 3)[3:-3, 3:-3]):
            assert metrics.j_and_f(pred, order(gt)) == expected
            assert metrics.j_and_f(order(pred).astype(np.uint8) * 255, order(gt)) == expected


@given(st.data())
def test_equal_to_the_plain_definition_on_small_frames(data):
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    pred, gt = (data.draw(arrays.arrays(bool, size)) for _ in range(2))
    check(pred, gt)
