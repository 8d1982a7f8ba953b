"""Scenes, pixels and facts: small ones made by hand, and properties of those drawn by chance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from demo.expressions import questions
from demo.facts import NEVER, measure
from demo.render import render_clip
from demo.sampling import PLOTS, sample_scene
from demo.scene import COLOURS, Scene, Shape


def square(start, end, radius=(0.2, 0.2), colour="red"):
    return Shape("square", colour, "plain", start, end, radius)


def scene(*shapes, frames=5, size=(100, 100), background="plain"):
    return Scene(size=size, frames=frames, shapes=shapes, background=background)


def texts(asked, fact):
    return {(e.text, e.targets, e.type_id) for e in asked if e.fact == fact}


def test_a_square_covers_the_pixels_worked_out_by_hand():
    # centre 50, half side 0.9 x 0.2 x 100 = 18: pixels 32 … 67
    _, masks = render_clip(scene(square((0.5, 0.5), (0.5, 0.5)), frames=1))
    assert masks.shape == (1, 1, 100, 100)
    y, x = np.nonzero(masks[0, 0])
    assert (x.min(), x.max(), y.min(), y.max()) == (32, 67, 32, 67)
    assert masks.sum() == 36 * 36


def test_motion_and_growth_are_even():
    facts = measure(scene(square((0.2, 0.5), (0.6, 0.5), radius=(0.1, 0.2))))
    assert facts.centres[0, :, 0] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6], abs=0.006)
    assert facts.growth(0) == pytest.approx(4, abs=0.3)
    assert facts.displacement(0) == pytest.approx([0.4, 0], abs=0.01)
    assert facts.speed(0) == pytest.approx(0.1, abs=0.005)


def test_the_front_shape_hides_the_back_one_but_for_the_shared_rim():
    back, front = square((0.5, 0.5), (0.5, 0.5)), square((0.63, 0.5), (0.63, 0.5), colour="blue")
    back, front = replace(back, tilt=10), replace(front, tilt=-10)
    _, masks = render_clip(scene(back, front, frames=1))
    both = masks[0, 0] & masks[1, 0]
    facts = measure(scene(back, front, frames=1))
    assert 0 < both.sum() < 80  # a rim one pixel wide at most
    assert facts.hidden[1, 0] == 0
    assert facts.hidden[0, 0] > 0.3
    assert facts.meets[0, 1, 0]
    assert not facts.clear.any()


def test_pixels_show_the_colour_of_the_shape_and_the_ramp_shows_the_place():
    frames, masks = render_clip(scene(square((0.5, 0.5), (0.5, 0.5)), frames=2, background="ramp"))
    assert frames.shape == (2, 100, 100, 3)
    assert frames.dtype == np.uint8
    assert np.abs(np.median(frames[0][masks[0, 0]], axis=0) - COLOURS["red"]).max() < 20
    ground = np.where(masks[0, 0][..., None], np.nan, frames[0])
    assert np.nanmean(ground[:, :20, 0]) + 60 < np.nanmean(ground[:, -20:, 0])  # red along x
    assert np.nanmean(ground[:20, :, 1]) + 60 < np.nanmean(ground[-20:, :, 1])  # green along y


def test_a_clip_may_show_some_frames_at_another_size():
    one = scene(square((0.3, 0.3), (0.7, 0.3)), frames=9, size=(60, 120))
    frames, masks = render_clip(one, (56, 84), frame_ids=(0, 8))
    assert frames.shape == (2, 56, 84, 3)
    assert masks.shape == (1, 2, 56, 84)
    x = [np.nonzero(masks[0, t])[1].mean() + 0.5 for t in (0, 1)]
    assert x == pytest.approx([0.3 * 60 / 120 * 84, 0.7 * 60 / 120 * 84], abs=0.5)  # stretched with the picture


def test_leaving_and_entering():
    leaves = square((0.3, 0.5), (-0.5, 0.5))  # centre 30, 10, -10, -30, -50: right edge 48, 28, 8, -12
    stays = square((0.7, 0.5), (0.7, 0.5), colour="blue")
    facts = measure(scene(leaves, stays))
    assert (facts.leaves(0), facts.leaves(1)) == (3, NEVER)
    facts = measure(scene(replace(leaves, start=leaves.end, end=leaves.start), stays))
    assert (facts.enters(0), facts.enters(1)) == (2, NEVER)


def test_half_out_at_the_end_is_in_doubt_and_not_asked_about():
    half = scene(square((0.3, 0.5), (0.0, 0.5)), square((0.7, 0.5), (0.7, 0.5), colour="blue"))
    assert measure(half).leaves(0) is None
    assert not texts(questions(half), "leaves")


def test_questions_of_a_scene_made_by_hand():
    grows = square((0.25, 0.3), (0.25, 0.3), radius=(0.08, 0.16))
    goes = square((0.4, 0.75), (0.8, 0.75), radius=(0.1, 0.1), colour="blue")
    asked = questions(scene(grows, goes))
    assert texts(asked, "grows") == {("the shape that is growing", (0,), 0), ("which shape is growing?", (0,), 1)}
    assert ("which shape is shrinking?", (), 2) in texts(asked, "shrinks")
    assert ("which shape moves to the right?", (1,), 1) in texts(asked, "moves_right")
    assert ("the leftmost shape", (0,), 0) in texts(asked, "far_left")
    assert ("the two squares", (0, 1), 0) in texts(asked, "kinds")
    assert ("which shape leaves the picture?", (), 2) in texts(asked, "leaves")
    assert not texts(asked, "still")  # one grows on the spot: is that still?
    assert (
        not texts(asked, "kind")
        - {("which of the shapes is a circle?", (), 2)}
        - {(f"which of the shapes is {kind}?", (), 2) for kind in ("a triangle", "a star", "an ellipse")}
    )


@pytest.mark.parametrize("ratio", [1.15, 1.0])
def test_a_little_growth_is_neither_yes_nor_no(ratio):
    slight = scene(square((0.3, 0.5), (0.3, 0.5), radius=(0.2, 0.2 * ratio)))
    found = texts(questions(slight), "grows")
    assert found == (
        set() if ratio > 1 else {(t, (), 2) for t in ("the shape that is growing", "which shape is growing?")}
    )


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_shows_what_it_promises(plot):
    rng = np.random.default_rng(3)
    for _ in range(3):
        drawn = sample_scene(rng, frames=1 if plot == "still" else 12, plot=plot)
        facts = measure(drawn)
        happens = {
            "crossing": facts.hidden.max() > 0,
            "curtain": not facts.areas[:, 0].any(),
            "giant": facts.areas[:, -1].max() == 160 * 240,
            "departure": (facts.areas[:, -1] == 0).sum() >= 1,
            "arrival": (facts.areas[:, 0] == 0).sum() == 1,
            "growth": max(facts.growth(i) or 0 for i in range(len(drawn.shapes))) > 1.3,
        }
        assert happens.get(plot, True)
        assert len({shape.colour for shape in drawn.shapes}) == len(drawn.shapes)
        assert facts.areas.max(axis=1).min() >= 0.008 * 160 * 240


def test_no_shape_jumps():
    rng = np.random.default_rng(4)
    for plot in ("crossing", "departure", "parade", "growth"):
        drawn = sample_scene(rng, frames=9, plot=plot)
        for shape in drawn.shapes:
            steps = np.diff([shape.centre(drawn.moment(t)) for t in range(9)], axis=0)
            assert np.linalg.norm(steps, axis=1).max() < 0.085


def test_the_same_generator_draws_the_same_scene_and_json_brings_it_back():
    one, two = (sample_scene(np.random.default_rng(8)) for _ in range(2))
    assert one == two
    assert one != sample_scene(np.random.default_rng(9))
    assert Scene.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_wrong_words_are_named():
    with pytest.raises(ValueError, match="plot is 'heist', expected one of mixed"):
        sample_scene(np.random.default_rng(0), plot="heist")
    with pytest.raises(ValueError, match="background is 'stars'"):
        sample_scene(np.random.default_rng(0), background="stars")
    with pytest.raises(ValueError, match="a plain mauve square"):
        square((0.5, 0.5), (0.5, 0.5), colour="mauve")
