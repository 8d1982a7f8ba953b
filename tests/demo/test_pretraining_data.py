"""Examples hold true boxes and sizes, and replies that state them."""

import re
from random import Random

import numpy as np
import pytest

from demo import pretraining_data
from demo.pretraining_data import ONE_FRAME, SIDE
from veason.answer import parse_reply


@pytest.fixture(scope="module")
def drawn():
    return [pretraining_data.draw_example(np.random.default_rng([3, i])) for i in range(6)]


def test_the_same_seed_gives_the_same_examples_whatever_the_workers():
    one, two = (
        pretraining_data.make_examples(3, seed=4, workers=1),
        pretraining_data.make_examples(3, seed=4, workers=2),
    )
    assert [example.scene for example in one] == [example.scene for example in two]
    assert all((a.frames == b.frames).all() for a, b in zip(one, two, strict=True))
    assert pretraining_data.make_examples(1, seed=5)[0].scene != one[0].scene


def test_boxes_hold_their_masks():
    masks = np.zeros((1, 2, SIDE, SIDE), dtype=bool)
    masks[0, 0, 10:20, 30:41] = True  # rows 10 … 19, columns 30 … 40
    assert np.allclose(pretraining_data._boxes(masks)[0, 0], [30.5, 10.5, 41.1, 20.1])
    assert np.isnan(pretraining_data._boxes(masks)[0, 1]).all()


def test_a_reply_boxes_a_frame_that_shows_all_targets(drawn):
    for example in drawn:
        rng = Random(1)
        shown = pretraining_data.choose_frames(example, 4, rng)
        for turn in pretraining_data.turns(example, shown, 8, rng, style="reply"):
            reply = parse_reply(turn.reply)
            assert reply.problem is None
            assert reply.answer.keyframe == example.frame_ids[turn.position]
            assert turn.position in shown
            truth = [example.boxes[i, turn.position] for i in turn.targets]
            assert np.abs(np.array(reply.answer.boxes) - truth).max() <= 0.5


def test_rough_replies_come_in_several_forms(drawn):
    rng = Random(2)
    replies = [turn.reply for example in drawn for turn in pretraining_data.turns(example, [0, 1, 2], 40, rng)]
    starts = {reply[:6] for reply in replies}
    assert starts == {"<think", '{"keyf', "This i", "I see ", "The ta"}


def test_the_reply_format_is_most_frequent_for_facts_of_one_frame(drawn):
    """85 of a hundred for a phrase, 30 for the same as a question, 5 for a question about several frames."""

    def share(ask):
        expression = next(e for example in drawn for e in example.asked if ask(e))
        return sum(pretraining_data._draw_format(expression, rng) == "reply" for _ in range(2000)) / 2000

    rng = Random(6)
    assert share(lambda e: e.text.startswith("the ") and e.fact == "colour") == pytest.approx(0.85, abs=0.05)
    assert share(lambda e: e.text.startswith("which ") and e.fact == "colour") == pytest.approx(0.30, abs=0.05)
    assert share(lambda e: e.text.startswith("which ") and "moves" in e.text) == pytest.approx(0.05, abs=0.03)


def test_any_frame_is_called_the_best(drawn):
    """Replies of every format use the words of a keyframe choice, for whichever frame was drawn."""
    rng, frames, forms = Random(4), set(), set()
    for turn in pretraining_data.turns(drawn[0], [0, 1, 2], 300, rng):
        keyframe = drawn[0].frame_ids[turn.position]
        if re.search(rf"(keyframe is|seen best|At) {keyframe}s|best seen at {keyframe}s", turn.reply):
            frames.add(turn.position)
            forms.add(turn.reply.startswith("<think>"))
        else:
            assert "best" not in turn.reply
    assert len(frames) > 1
    assert forms == {True, False}


def test_one_frame_is_asked_nothing_about_time(drawn):
    example = drawn[0]
    facts = {e.text: e.fact for e in example.asked}
    asked = list(pretraining_data.turns(example, [0], 30, Random(3)))
    assert asked
    assert all(facts[turn.expression] in ONE_FRAME for turn in asked)
