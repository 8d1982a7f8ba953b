"""The scores of `released` and `strict` for the same reply. The scene, and its numbers, are in conftest.py.

The filler tracker keeps the predicted box on all frames: A's box of frame 12 gives IoU 50/100, 1, 100/200 with the
three union masks, so R_u is 2/3.
"""

import pytest

from grpo_reward.options import RELEASED, STRICT, check_weights
from grpo_reward.reward_score import ZERO_BOX, KeyframeReward, true_boxes
from veason.answer import parse_reply

NEAR = "[4, 20, 13, 29]"
"""A's pixels on frame 12: 10 x 10, half a pixel off the true box; IoU 9.5² / (200 - 9.5²) = 0.8222."""
IOU = 9.5**2 / (200 - 9.5**2)
EXACT = "[4.5, 20.5, 13.5, 29.5]"


def parts(reward):
    return tuple(reward.parts[name] for name in ("format", "keyframe", "spatial", "consistency"))


def test_a_good_reply(grade, say):
    """Released counts B, absent from frame 12, as a true box: one of two found."""
    assert parts(grade(STRICT, say(12, f"[{NEAR}]"))) == pytest.approx((1, 0.5, IOU, 2 / 3))
    assert parts(grade(RELEASED, say(12, f"[{NEAR}]"))) == pytest.approx((2, 0.5, IOU / 2, 2 / 3))
    assert grade(STRICT, say(12, f"[{NEAR}]")).total == pytest.approx(1 + 0.5 + IOU + 2 / 3)
    assert grade(STRICT, say(12, f"[{NEAR}]")).problem is None


def test_a_zero_box_is_paid_by_released_alone(grade, say):
    honest, hacked = say(12, f"[{EXACT}]"), say(12, f"[{EXACT}, [0, 0, 0, 0]]")
    assert grade(RELEASED, honest).parts["spatial"] == 0.5
    assert grade(RELEASED, hacked).parts["spatial"] == 1.0
    assert grade(STRICT, honest).parts["spatial"] == 1.0
    assert grade(STRICT, hacked).parts["spatial"] == 0.5
    assert grade(RELEASED.switch(zero_boxes=False), hacked).parts["spatial"] == 0.5


def test_strict_prompts_the_tracker_with_matched_boxes_only(grade, say, filler):
    grade(STRICT, say(12, f"[[0, 0, 0, 0], {NEAR}]"))
    assert filler.tracked == [(1, ((4, 20, 13, 29),))]
    grade(RELEASED, say(12, f"[[0, 0, 0, 0], {NEAR}]"))
    assert filler.tracked[1:] == [(1, ((0, 0, 0, 0), (4, 20, 13, 29)))]


def test_two_objects(grade, say):
    """On frame 22 both are there: A found exactly, B missed; the box fills half of the union there."""
    assert parts(grade(STRICT, say(22, f"[{EXACT}]")))[:3] == (1, 1.0, 0.5)
    both = say(22, f"[[40.5, 40.5, 49.5, 49.5], {EXACT}]")
    assert parts(grade(STRICT, both))[:3] == (1, 1.0, 1.0)
    assert parts(grade(RELEASED, both))[:3] == (2, 1.0, 1.0)


def test_a_keyframe_that_was_not_shown_is_worth_its_form(grade, say):
    reward = grade(STRICT, say(13, f"[{NEAR}]"))
    assert (parts(reward), reward.problem) == ((1, 0, 0, 0), "keyframe_not_shown")
    assert parts(grade(RELEASED, say(13, f"[{NEAR}]"))) == (2, 0, 0, 0)


def test_an_empty_list(grade, say, filler):
    """No boxes, no prompts: R_u is 0, not the share of frames without the target."""
    reward = grade(STRICT, say(12, "[]"))
    assert (parts(reward), reward.problem) == ((0.5, 0.5, 0, 0), "no_boxes")
    assert parts(grade(RELEASED, say(12, "[]"))) == (1, 0.5, 0, 0)
    assert filler.encoded == 0


def test_true_is_a_number_to_released(grade, say):
    """[true, 20, 13, 29] is 13 x 10 there; strict has no box, and half of the format."""
    box = say(12, "[[true, 20, 13, 29]]")
    overlap = 9.5 * 9.5  # from (4.5, 20.5) to (13, 29), inclusive
    assert parts(grade(RELEASED, box))[:3] == pytest.approx((2, 0.5, overlap / (130 + 100 - overlap) / 2))
    assert parts(grade(STRICT, box)) == (0.5, 0.5, 0, 0)
    assert grade(STRICT, box).problem == "bad_boxes"
    assert grade(STRICT, say("true", f"[{NEAR}]")).problem == "bad_keyframe"
    assert parts(grade(RELEASED, say("true", f"[{NEAR}]"))) == (2, 0, 0, 0)  # 1 was not shown
    assert parts(grade(RELEASED, say(12, "[[true, true, true, true]]"))) == (2, 0.5, 0, 0)  # NumPy subtracts no bools


def test_nan_spoils_the_released_list_and_infinity_does_not(grade, say, filler):
    for bad in ("[NaN, 1, 2, 3]", "[1, 2, Infinity, 1]"):  # a height of 0 times infinity is no area either
        text = say(12, f"[{EXACT}, {bad}]")
        assert parts(grade(RELEASED, text)) == (2, 0.5, 0, 0)
        assert parts(grade(STRICT, text)) == pytest.approx((0.75, 0.5, 1.0, 2 / 3))
    filler.tracked.clear()
    infinite = say(12, f"[{EXACT}, [0, 0, Infinity, Infinity]]")
    assert parts(grade(RELEASED, infinite))[:3] == (2, 0.5, 0.5)
    assert filler.tracked == [(1, ((4.5, 20.5, 13.5, 29.5),))]  # what is not finite prompts nothing
    assert parts(grade(STRICT, infinite))[:3] == (0.75, 0.5, 1.0)


def test_an_inverted_box_is_a_box_to_released(grade, say):
    """It overlaps nothing; with minus the area of a true box it brings the whole list down."""
    assert parts(grade(RELEASED, say(12, f"[{EXACT}, [30, 30, 20, 40]]")))[:3] == (2, 0.5, 0.5)
    assert parts(grade(STRICT, say(12, f"[{EXACT}, [30, 30, 20, 40]]")))[:3] == (0.75, 0.5, 1.0)
    assert parts(grade(RELEASED, say(12, f"[{EXACT}, [0, 0, -2, 0]]"))) == (2, 0.5, 0, 0)  # -1 x 1 against [0,0,0,0]


def test_one_bad_entry_spoils_the_released_list(grade, say):
    text = say(12, f"[{EXACT}, [1, 2, 3]]")
    assert parts(grade(RELEASED, text)) == (1.5, 0.5, 0, 0)
    assert parts(grade(STRICT, text)) == pytest.approx((0.75, 0.5, 1.0, 2 / 3))
    assert parts(grade(RELEASED.switch(brittle_lists=False), text))[:3] == (1.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("keyframe", "position"), [("12.7", 1), ("12.0", 1), ("1.2e1", 1), ('"12"', 1), ('" 2 "', 0), ('"12.0"', None)]
)
def test_a_loose_keyframe_has_no_format_but_all_the_rest(grade, say, keyframe, position):
    reward = grade(RELEASED, say(keyframe, f"[{NEAR}]"))
    expected = (1, 0, 0) if position is None else (1, (0.25, 0.5)[position])
    assert parts(reward)[: len(expected)] == expected
    assert (reward.parts["spatial"] > 0) == (position is not None)
    assert reward.problem == "bad_keyframe"
    assert parts(grade(STRICT, say(keyframe, f"[{NEAR}]"))) == (0.5, 0, 0, 0)


def test_a_keyframe_without_a_list_counts_for_released(grade):
    text = '<think>t</think><answer>{"keyframe_timestamp": 12}</answer>'
    assert parts(grade(RELEASED, text)) == (1, 0.5, 0, 0)
    assert parts(grade(STRICT, text)) == (0.5, 0, 0, 0)


def test_an_answer_opened_while_thinking(grade, say):
    """Released takes the first block for the answer, but the first in braces for the format."""
    text = say(12, f"[{EXACT}]").replace("<think>t", "<think>then I open <answer> and stop")
    assert parts(grade(RELEASED, text)) == (2, 0, 0, 0)
    assert parts(grade(STRICT, text))[:3] == (1, 0.5, 1.0)
    inside = say(12, '[], "note": "</answer>"')
    assert parts(grade(RELEASED, inside.replace("[]", f"[{NEAR}]"))) == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "form", "problem"),
    [
        ("", 0, "no_answer"),
        ("<think>t</think><answer>{</answer>", 1, "not_json"),
        ("<think>t</think><answer>[1]</answer>", 1, "not_object"),
        ("<think>t</think><answer>{}</answer>", 1, "no_keyframe"),
        ('<think>t</think><answer>{"keyframe_timestamp": 12', 0, "answer_not_closed"),
        ("<think>t</think>\n<answer></answer> ", 0, "not_json"),
    ],
)
def test_malformed_replies(grade, text, form, problem):
    for preset, scale in ((RELEASED, 1), (STRICT, 0.5)):
        reward = grade(preset, text)
        assert (parts(reward), reward.problem) == ((form * scale, 0, 0, 0), problem)


SOUND = f'<think>t</think><answer>{{"keyframe_timestamp": 12, "bbox_2d_list": [{EXACT}]}}</answer>'


@pytest.mark.parametrize(
    ("text", "form", "read"),
    [
        (SOUND.replace("</think><", "</think>\n \n<"), 2, True),
        (SOUND.replace("]}", '], "why": 1}'), 2, True),
        (SOUND.replace("</think>", "</think> so "), 1, True),
        (f"{SOUND}\n", 1, True),
        (f"Well. {SOUND}", 1, True),
        (f"{SOUND} That is it.", 1, True),
        (SOUND.replace("<think>t</think>", ""), 1, True),
        (SOUND + SOUND.replace("12", "22"), 2, True),
        (SOUND.replace("answer>", "ANSWER>"), 0, False),
        (SOUND.replace("<answer>", "<answer>It is "), 1, False),
        (SOUND.replace("<answer>", "<answer>```json\n").replace("</answer>", "\n```</answer>"), 1, False),
        (SOUND.replace('"', "'"), 1, False),
        (SOUND.replace("]]", "],]"), 1, False),
    ],
)
def test_what_stands_around_an_answer(grade, text, form, read):
    assert parts(grade(RELEASED, text)) == pytest.approx((form, 0.5, 0.5, 2 / 3) if read else (form, 0, 0, 0))
    assert parts(grade(STRICT, text)) == pytest.approx((form / 2, 0.5, 1, 2 / 3) if read else (form / 2, 0, 0, 0))


def test_a_first_answer_that_is_none(grade):
    """Released grades the form of the first in braces, strict that of the first; neither reads on."""
    text = SOUND.replace("<answer>", "<answer>top left</answer><answer>")
    assert parts(grade(RELEASED, text)) == (2, 0, 0, 0)
    assert parts(grade(STRICT, text)) == (0.5, 0, 0, 0)


COLUMN = "[[4.5], [20.5], [13.5], [29.5]]"
TEXTS = '["4.5", "20.5", "13.5", "29.5"]'


@pytest.mark.parametrize(
    "entry", ["[]", f"[{EXACT}]", COLUMN, TEXTS, '[4.5, "20.5", 13.5, 29.5]', "[4.5, 20.5, 13.5, 29.5, 1]", "4", "null"]
)
def test_entries_that_are_not_four_numbers(grade, say, entry):
    """The share of the format, by the spec; that they are worth nothing to R_s and R_u in released is our reading."""
    assert parts(grade(RELEASED, say(12, f"[{entry}]"))) == (1, 0.5, 0, 0)
    assert parts(grade(STRICT, say(12, f"[{entry}]"))) == (0.5, 0.5, 0, 0)
    assert parts(grade(RELEASED, say(12, f"[{entry}, {EXACT}]"))) == (1.5, 0.5, 0, 0)
    assert parts(grade(STRICT, say(12, f"[{entry}, {EXACT}]"))) == pytest.approx((0.75, 0.5, 1, 2 / 3))


@pytest.mark.parametrize("keyframe", ["-12", "-0", "0"])
def test_a_keyframe_below_the_first(grade, say, keyframe):
    """Not a place counted from the end."""
    assert parts(grade(RELEASED, say(keyframe, f"[{EXACT}]"))) == (2, 0, 0, 0)
    assert parts(grade(STRICT, say(keyframe, f"[{EXACT}]"))) == (1, 0, 0, 0)


def test_the_last_of_two_keys_wins_in_released(grade, say):
    text = say(2, f'[{EXACT}], "keyframe_timestamp": 12')
    assert parts(grade(RELEASED, text))[:3] == (2, 0.5, 0.5)
    assert parts(grade(STRICT, text)) == (0.5, 0, 0, 0)


def test_deep_json_is_read_by_released(grade, say):
    deep = "[" * 60 + "]" * 60
    assert parts(grade(RELEASED, say(12, deep))) == (1, 0.5, 0, 0)
    assert grade(STRICT, say(12, deep)).problem == "too_deep"


def test_a_long_integer_is_an_int_to_released(grade, say):
    assert parts(grade(RELEASED, say("1" * 30, f"[{NEAR}]"))) == (2, 0, 0, 0)
    assert parts(grade(RELEASED, say("1" * 5000, f"[{NEAR}]"))) == (1, 0, 0, 0)  # more digits than int() takes
    assert parse_reply(say(12, f"[[0, 0, 1, {'1' * 400}]]"), rules=RELEASED.rules).answer.boxes[0][3] != 0


def test_where_no_object_is_in_the_frame_released_has_one_zero_box():
    assert true_boxes((None, None), zero_boxes=True) == [ZERO_BOX]
    assert true_boxes((None, (1, 2, 3, 4)), zero_boxes=True) == [ZERO_BOX, (1, 2, 3, 4)]
    assert true_boxes((None, None), zero_boxes=False) == []


def test_every_switch_has_a_name():
    assert STRICT.switch(wide_format=True).wide_format
    assert STRICT.switch(allow_bool=True).rules.allow_bool
    switched = STRICT.switch(
        allow_bool=True, allow_nonfinite=True, allow_inverted=True, allow_repeated_keys=True, loose_keyframe=True,
        block="first", max_depth=500, zero_boxes=True, brittle_lists=True, wide_format=True,
    )  # fmt: skip
    assert switched == RELEASED
    with pytest.raises(ValueError, match="no reward switch is called 'zero_box'; the nearest is 'zero_boxes'"):
        STRICT.switch(zero_box=True)


def test_weights_are_values(prompt, filler, say):
    text = say(12, f"[{EXACT}]")
    reward = KeyframeReward(weights={"keyframe": 0, "spatial": 2}, tracker=filler).score(prompt, [text])[0]
    assert reward.total == pytest.approx(1 + 0 * 0.5 + 2 * 1.0 + 2 / 3)
    assert reward.parts["keyframe"] == 0.5  # seen in the log all the same
    without = KeyframeReward(weights={"consistency": 0}).score(prompt, [text])[0]
    assert without.parts == {"format": 1, "keyframe": 0.5, "spatial": 1}
    with pytest.raises(ValueError, match="needs a tracker"):
        KeyframeReward()
    with pytest.raises(ValueError, match="no reward term is called 'spatail'; the nearest is 'spatial'"):
        check_weights({"spatail": 1})
    with pytest.raises(ValueError, match=r"weights\.format is nan"):
        check_weights({"format": float("nan")})
