"""Fit and unfit replies, sentence by sentence."""

import time

import pytest

from training_data_construction.cot_replies import (
    MAX_CHARS,
    REASONS,
    FirstReplies,
    keyframes_named,
    mentions_boxes,
    rejection,
)
from veason.completion import Completion
from veason.errors import DataError

FIT = "At 0s a cat sits on a wall. At 12s, the keyframe, it is closest to the camera. It then jumps to the left."


def reason(text=FIT, *, finish="stop", expression="the cat that jumps", keyframe=12):
    return rejection(Completion(text, finish, 0, 0, "m"), expression=expression, keyframe=keyframe)


def test_a_fit_reply():
    assert reason() is None
    assert reason(finish=None) is None  # some servers do not say


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("empty", {"text": " \n "}),
        ("cut_off", {"finish": "length"}),
        ("filtered", {"finish": "content_filter"}),
        ("too_long", {"text": "a " * MAX_CHARS}),
        ("tags", {"text": FIT + "</think>"}),
        ("tags", {"text": "<think>" + FIT}),
        ("tags", {"text": "<ANSWER>" + FIT}),
        ("tags", {"text": FIT + "<|im_end|>"}),
        ("tags", {"text": FIT + "<image>"}),
        ("tags", {"text": FIT + "<audio>"}),
        ("tags", {"text": FIT + "<|object 1|>"}),
        ("tags", {"text": "< think >" + FIT}),
        ("mentions_boxes", {"text": FIT + " It stands in the red box."}),
        ("other_keyframe", {"text": FIT + " The keyframe is 0s."}),
    ],
)
def test_each_reason(expected, case):
    assert reason(**case) == expected
    assert expected in REASONS


def test_answers_that_are_unfit_for_one_reason_from_the_first_on_stop_the_run():
    counter = FirstReplies()
    for _ in range(19):
        counter.add("tags", "a")
    with pytest.raises(DataError, match=r"20 answers are all unusable for one reason: the reply holds tags.*'c d'"):
        counter.add("tags", "c\nd")


@pytest.mark.parametrize("first", [[None], ["tags", None], ["tags", "empty"]])
def test_one_fit_answer_or_another_reason_shows_that_it_is_no_fault_of_the_whole(first):
    counter = FirstReplies()
    for reason in [*first, *["tags"] * 50]:
        counter.add(reason, "")


@pytest.mark.parametrize(
    "text",
    [
        "The red box in each frame marks it.",
        "as the red bounding boxes show",
        "It is the one outlined in red.",
        "The cat is highlighted in red.",
        "the animal marked in the red",
        "the object inside the red rectangle",
        "a thin red outline",
        "the red-outlined dog",
        "the red frame around the dog",
        "There is a bounding box drawn on it.",
        "the bbox",
        "a box drawn around the dog",
        "the rectangle surrounding the dog",
        "the red square around the dog",
        "the boxes are drawn around both dogs",
        "two highlighted boxes",
        "according to the annotations",
        "the ground-truth region",
        "the **red** **box**",
        "in the\nred\nboxes",
        "红框中的猫",
        "红色的方框",
    ],
)
def test_talk_of_the_boxes_is_found(text):
    assert mentions_boxes(" ".join(text.replace("*", "").split()), "the dog")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("The red square moves to the left.", "which shape moves to the left?"),
        ("The red square around 5s is largest.", "the largest shape"),
        ("the red car, the red circle, the red star", "the fastest shape"),
        ("I see the red square. It covers the blue circle.", "the shape in front"),
        ("A man in red stands by the line.", "the man"),
        ("a dog with a red collar", "the dog"),
        ("The keyframe is 12s; in that frame it is largest.", "the dog"),
        ("a box on the table; the dog runs around it", "the dog"),
        ("The dog is framed by the door.", "the dog"),
        # the target itself
        ("The red box is carried away.", "the red box"),
        ("The red boxes are carried away.", "which box is carried away?"),
        ("The red frame is bent.", "bicycle with the red frame"),
        ("the word highlighted in red", "the highlighted word"),
        ("the rectangle around the flower", "the two rectangles"),
    ],
)
def test_the_target_may_be_red(text, expression):
    assert not mentions_boxes(text, expression)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("The keyframe is 12s.", [12]),
        ("The keyframe is the frame at 12s.", [12]),
        ("the keyframe (3s)", [3]),
        ("Keyframe: 3s", [3]),
        ("the key frame should be at 3 seconds", [3]),
        ("the keyframe's timestamp", []),
        ("The keyframe timestamp is 3", [3]),
        ("so 3s is the keyframe", [3]),
        ("At 3s the keyframe shows it.", [3]),
        ("I take 12s as the best keyframe", [12]),
        ("The frame at 3.5s serves as the keyframe", [3.5]),
        ("(3s) is therefore chosen as our keyframe", [3]),
        # weighed, not chosen, or not about it at all
        ("rather than taking 3s as the keyframe", []),
        ("3s is not the keyframe", []),
        ("If 3s were the keyframe", []),
        ("Compared to the keyframe, at 3s it is small.", []),
        ("keyframe candidates at 3s and 12s", []),
        ("In the keyframe it is largest, at 3s smallest.", []),
        ("the keyframe is 3 of 8", []),
        ("the keyframe is 0:12", []),
        ("At 3s it is far away.", []),
    ],
)
def test_which_frame_is_called_the_keyframe(text, times):
    assert list(keyframes_named(text)) == times


@pytest.mark.parametrize("text", ["keyframe is " * 700, "red " * 2000, "3s is the " * 800, "the box that is " * 500])
def test_no_text_is_slow(text):
    start = time.perf_counter()
    reason(text)
    assert time.perf_counter() - start < 0.5
