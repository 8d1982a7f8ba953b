"""Statements about a scene are true."""

from random import Random

import pytest

from demo import reasoning
from demo.facts import measure
from demo.scene import Scene, Shape


def shape(colour: str, start, end, radius=(0.1, 0.1), kind="circle") -> Shape:
    return Shape(kind=kind, colour=colour, texture="plain", start=start, end=end, radius=radius)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """100 x 100 pixels, 5 frames: a circle grows on the spot, a square moves to the left."""
    grows = shape("red", (0.25, 0.25), (0.25, 0.25), radius=(0.08, 0.16))
    moves = shape("blue", (0.8, 0.8), (0.5, 0.8), kind="square")
    return Scene(size=(100, 100), frames=5, shapes=(grows, moves))


def test_size_is_the_side_of_a_square_in_hundredths():
    assert reasoning.size(100, 10_000) == 10  # 10 x 10 of 100 x 100
    assert reasoning.size(0, 10_000) == 0
    assert reasoning.size(1, 10_000_000) == 1  # visible is never 0
    assert reasoning.size(7056, 7056) == 100


def test_names():
    three = tuple(shape(colour, (0.5, 0.5), (0.5, 0.5)) for colour in ("red", "blue", "pink"))
    scene = Scene(size=(100, 100), frames=2, shapes=three)
    assert reasoning.names(scene, [1]) == "the blue circle"
    assert reasoning.names(scene, [0, 2]) == "the red circle and the pink circle"
    assert reasoning.names(scene, [0, 1, 2]) == "the red circle, the blue circle and the pink circle"


def test_sizes_come_with_their_frames(scene):
    # A circle of radius 0.08 covers pi * 0.08^2 = 2.01 % of the picture: side 14.2; at 0.16 it is 28.4.
    assert reasoning.sizes_sentence(measure(scene), [0], (0, 4)) == "Sizes 0:14, 4:28."


def test_actions(scene):
    assert list(reasoning.actions(measure(scene), [0])) == ["It grows."]
    assert list(reasoning.actions(measure(scene), [1])) == ["It moves to the left."]
    assert list(reasoning.actions(measure(scene), [0, 1])) == []  # they do nothing together


def test_places(scene):
    assert list(reasoning.places(scene, measure(scene), [0], 0)) == ["It is at the top left."]
    assert list(reasoning.places(scene, measure(scene), [1], 4)) == ["It is at the bottom."]
    assert list(reasoning.places(scene, measure(scene), [0, 1], 4)) == []


def test_explanations_vary_and_name_the_keyframe(scene):
    texts = {reasoning.explain(scene, [0], frame_ids=(0, 2, 4), keyframe=2, rng=Random(seed)) for seed in range(30)}
    assert len(texts) == 9  # three ways to begin, three to choose
    for text in texts:
        assert "the red circle" in text
        assert "It grows." in text
        assert "2s" in text
        assert "Sizes 0:14, 2:22, 4:28." in text  # areas at native size, in whole pixels


def test_perceiving_judges_no_frame(scene):
    text = reasoning.perceive(scene, [1], frame_ids=(0, 4), sizes=(18, 18))
    assert text == "This is the blue square. Sizes 0:18, 4:18."
