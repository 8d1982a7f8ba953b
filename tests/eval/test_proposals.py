"""One video in DAVIS's unsupervised evaluation: the map of objects, and who stands for whom."""

import index_roots as roots
import numpy as np
import pytest
import small_roots as small

from eval.predictions import open_predictions
from eval.proposals import ProposalScorer, number_map
from veason.datasets import open_dataset

SQUARE, OTHER, NOTHING, EVERYTHING = small.SQUARE, small.OTHER, small.NOTHING, small.EVERYTHING


def scores(tmp_path, layers, said, *, absent=()):
    """{annotator: objects} of the video ``v``; `said`: exp_id -> mask, the truth where it is not named."""
    dataset = open_dataset("refdavis", roots.write_refdavis(tmp_path / "gt", {"v": layers}))
    pred = roots.predict(dataset, tmp_path / "pred", lambda key, t: said.get(key.partition("/")[2]))
    scorer = ProposalScorer(dataset, open_predictions(pred), frozenset(absent))
    outcomes = scorer.score(list(dataset))
    assert list(outcomes) == [f"v/annotator {a}" for a in range(4)]
    return dict(enumerate(outcomes.values()))


def jf(run):
    return [(one.exp_id, one.j, one.f) for one in run]


def test_of_several_masks_the_first_and_of_none_the_background():
    first, second = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)
    first[0, :2], second[0, 1:] = 255, 1
    assert number_map([first, second]).tolist() == [[1, 1, 2], [0, 0, 0]]
    assert number_map([second, first]).tolist() == [[2, 1, 1], [0, 0, 0]]


TWO = [{1: SQUARE, 2: OTHER}, {1: SQUARE, 2: OTHER}]


def test_two_objects_that_changed_places_are_changed_back(tmp_path):
    found = scores(tmp_path, TWO, {"0": OTHER, "4": SQUARE})
    assert jf(found[0]) == [("4", 1.0, 1.0), ("0", 1.0, 1.0)]
    assert jf(found[1]) == [("1", 1.0, 1.0), ("5", 1.0, 1.0)]
    assert [one.number for one in found[0]] == [1, 2]


def test_a_mask_over_everything_leaves_nothing_to_those_behind_it(tmp_path):
    found = scores(tmp_path, TWO, {"0": EVERYTHING, "5": EVERYTHING})
    # annotator 0: one proposal, the frame: 25 of 400 of either object and no boundary; no other proposal: an empty one
    assert sorted((one.j, one.f) for one in found[0]) == [(0.0, 0.0), (25 / 400, 0.0)]
    assert {one.exp_id for one in found[0]} == {"0", None}
    # annotator 1: the square keeps its pixels, the frame gets the others: 25 of the other one of 400 - 25
    assert jf(found[1])[0] == ("1", 1.0, 1.0)
    assert found[1][1].j == 25 / 375


def test_void_pixels_do_not_count(tmp_path):
    void = small.SHIFTED & ~SQUARE  # where the shifted square leaves the true one
    found = scores(tmp_path, [{1: SQUARE, 255: void}], {"0": small.SHIFTED, "1": SQUARE | void})
    assert found[0][0].j == 15 / 25  # 3 of 5 columns are left of it
    assert jf(found[1]) == [("1", 1.0, 1.0)]


def test_a_further_proposal_may_stand_for_the_object(tmp_path):
    # the second object comes after the first frame, so only the first counts; its best proposal is the second
    layers = [{1: SQUARE, 2: OTHER}, {1: SQUARE}]
    dataset = open_dataset("refdavis", roots.write_refdavis(tmp_path / "gt", {"v": layers}))
    roots.write_index(tmp_path / "gt/valid/Annotations/v/00000.png", {1: SQUARE})
    said = {"v/0": NOTHING | small.square(0, 14), "v/4": SQUARE}
    pred = roots.predict(dataset, tmp_path / "pred", lambda key, t: said.get(key, NOTHING))
    outcomes = ProposalScorer(dataset, open_predictions(pred), frozenset()).score(list(dataset))
    assert jf(outcomes["v/annotator 0"]) == [("4", 1.0, 1.0)]


def test_an_empty_mask_behind_the_last_object_is_no_proposal(tmp_path):
    # the object leaves after the first frame: an empty mask would be right in three frames of four, J .75
    layers = [{1: SQUARE, 2: OTHER}, {}, {}, {}]
    dataset = open_dataset("refdavis", roots.write_refdavis(tmp_path / "gt", {"v": layers}))
    roots.write_index(tmp_path / "gt/valid/Annotations/v/00000.png", {1: SQUARE})
    said = {"v/0": OTHER, "v/4": NOTHING, "v/1": NOTHING, "v/5": OTHER}
    pred = roots.predict(dataset, tmp_path / "pred", lambda key, t: said.get(key, NOTHING))
    outcomes = ProposalScorer(dataset, open_predictions(pred), frozenset()).score(list(dataset))
    assert jf(outcomes["v/annotator 0"]) == [("0", 0.0, 0.0)]
    assert outcomes["v/annotator 1"][0].j == 0.75  # before the last object it is one


def test_an_absent_prediction_is_empty(tmp_path):
    found = scores(tmp_path, TWO, {}, absent={"v/4"})
    assert jf(found[0]) == [("0", 1.0, 1.0), (None, 0.0, 0.0)]


def test_more_objects_than_davis_allows(tmp_path):
    dots = {}
    for number in range(1, 22):
        dots[number] = np.zeros(small.SIZE, bool)
        dots[number][number // 10, number % 10 * 2] = True
    found = scores(tmp_path, [dots], {str(4 * 20 + 1): NOTHING})
    assert found[0] == "21 objects are predicted; DAVIS allows 20"
    assert len(found[1]) == 21  # 20 are predicted here
    assert sum(one.j for one in found[1]) == pytest.approx(20)


def test_broken_ground_truth_is_told_of_every_run(tmp_path):
    dataset = open_dataset("refdavis", roots.write_refdavis(tmp_path / "gt"))
    pred = roots.predict(dataset, tmp_path / "pred", lambda key, t: SQUARE)
    (tmp_path / "gt/valid/Annotations/v/00001.png").unlink()
    outcomes = ProposalScorer(dataset, open_predictions(pred), frozenset()).score(dataset.by_video["v"])
    assert len(outcomes) == 4
    assert all("00001.png: no such file" in outcome for outcome in outcomes.values())
