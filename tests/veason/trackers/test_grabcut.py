"""GrabCut and flow on small moving pictures whose masks are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from veason import masks
from veason.trackers import open_tracker
from veason.trackers.flow import NeighbourFlow
from veason.trackers.grabcut import GrabCutTracker

SIZE = (120, 160)


def texture(low: int, high: int, seed: int) -> np.ndarray:
    """A blotchy SIZE picture with channels between `low` and `high`."""
    blotches = np.random.default_rng(seed).integers(low, high, (16, 22, 3), dtype=np.uint8)
    return np.clip(cv2.resize(blotches, SIZE[::-1], interpolation=cv2.INTER_CUBIC), low, high).astype(np.uint8)


def ellipse(t: int) -> np.ndarray:
    """(120, 160) bool: an ellipse that moves 3 pixels right and 1 down a frame."""
    drawn = cv2.ellipse(np.zeros(SIZE, np.uint8), (45 + 3 * t, 45 + t), (28, 18), 20, 0, 360, 1, cv2.FILLED)
    return drawn.view(bool)


def video(length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A textured ellipse over a textured ground that drifts the other way; frames and true masks."""
    ground, skin = texture(60, 160, 1), texture(110, 250, 2)
    frames, truth = [], []
    for t in range(length):
        inside = ellipse(t)
        frame = np.roll(ground, -t, axis=1)
        frame[inside] = np.roll(skin, (t, 3 * t), axis=(0, 1))[inside]
        frames.append(frame)
        truth.append(inside)
    return frames, truth


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    return masks.box(masks.encode(mask))


@pytest.fixture(scope="module")
def tracker() -> GrabCutTracker:
    return open_tracker("grabcut")


@pytest.mark.parametrize("keyframe", [0, 8, 15])
def test_moving_ellipse(tracker, keyframe):
    frames, truth = video(16)
    track = tracker.track(tracker.encode(frames), keyframe=keyframe, boxes=[box_of(truth[keyframe])])
    scores = [masks.iou(found, true) for found, true in zip(masks.track_unions(track), truth, strict=True)]
    assert np.mean(scores) > 0.9
    assert min(scores) > 0.85


def test_downscaled_work_comes_back_at_frame_size():
    frames, truth = video(4)
    tracker = GrabCutTracker(working_side=80)
    encoded = tracker.encode(frames)
    assert encoded.frames[0].shape == (60, 80, 3)
    track = tracker.track(encoded, keyframe=0, boxes=[box_of(truth[0])])
    assert track.size == SIZE
    assert all(masks.iou(found, true) > 0.8 for found, true in zip(masks.track_unions(track), truth, strict=True))


def test_two_objects_stay_apart_and_in_order(tracker):
    frames = [np.full((60, 100, 3), 90, np.uint8) for _ in range(3)]
    for t, frame in enumerate(frames):
        frame[20:40, 10 + t : 30 + t] = (250, 40, 40)
        frame[10:30, 60 - t : 90 - t] = (40, 40, 250)
    track = tracker.track(tracker.encode(frames), keyframe=0, boxes=[(60, 10, 89, 29), (10, 20, 29, 39)])
    assert masks.area(track.objects[0][0]) == 600
    assert masks.area(track.objects[1][0]) == 400
    assert masks.box(track.objects[0][0]) == (60, 10, 89, 29)
    assert masks.box(track.objects[1][0]) == (10, 20, 29, 39)
    assert [masks.box(track.objects[k][2]) for k in (0, 1)] == [(58, 10, 87, 29), (12, 20, 31, 39)]


def test_same_masks_every_time_and_in_any_order(tracker):
    frames, truth = video(6)
    encoded = tracker.encode(frames)
    box, other = box_of(truth[2]), (70.0, 60.0, 120.0, 100.0)
    first = tracker.track(encoded, keyframe=2, boxes=[box])
    cv2.setRNGSeed(99)
    cv2.randu(np.zeros(7, np.uint8), 0, 9)
    both = tracker.track(encoded, keyframe=2, boxes=[other, box])
    assert tracker.track(encoded, keyframe=2, boxes=[box]) == first
    assert both.objects[1] == first.objects[0]
    fresh = GrabCutTracker(flow_budget_bytes=0)
    assert fresh.track(fresh.encode(frames), keyframe=2, boxes=[box]) == first


def test_flow_is_computed_once_for_all_prompts(tracker, monkeypatch):
    calls = []
    create = cv2.DISOpticalFlow_create
    monkeypatch.setattr(cv2, "DISOpticalFlow_create", lambda preset: calls.append(1) or create(preset))
    frames, truth = video(5)
    encoded = tracker.encode(frames)
    assert len(calls) == 0
    tracker.track(encoded, keyframe=2, boxes=[box_of(truth[2])] * 2)
    assert len(calls) == 4  # 3 from 2, 4 from 3, 1 from 2, 0 from 1
    tracker.track(encoded, keyframe=2, boxes=[box_of(truth[2])])
    assert len(calls) == 4
    tracker.track(encoded, keyframe=0, boxes=[box_of(truth[0])])
    assert len(calls) == 6  # forward, 1 from 0 and 2 from 1 are new


def test_flow_says_where_a_pixel_came_from():
    """A picture moved 3 right and 1 down: its pixels lie 3 to the left and 1 up in the frame before."""
    picture = texture(0, 255, 4)
    flow = NeighbourFlow([picture, np.roll(picture, (1, 3), axis=(0, 1))], budget_bytes=0)
    middle = flow.between(1, 0)[30:90, 30:130].astype(np.float32)
    assert np.allclose(np.median(middle, axis=(0, 1)), (-3, -1), atol=0.2)
    square = np.zeros(SIZE, bool)
    square[40:80, 50:90] = True
    moved = flow.carry(square, 0, 1, reach=0.1)
    assert masks.iou(moved, np.roll(square, (1, 3), axis=(0, 1))) > 0.95


def test_object_the_camera_leaves_behind_is_empty_from_then_on(tracker):
    """The view moves 6 pixels right a frame over a still scene; the square's last column goes after frame 11."""
    scene = np.hstack([texture(60, 120, 1), texture(60, 120, 5)])
    scene[40:80, 30:70] = texture(150, 250, 3)[40:80, 30:70]
    frames = [scene[:, 6 * t : 6 * t + 160].copy() for t in range(16)]
    track = tracker.track(tracker.encode(frames), keyframe=0, boxes=[(30, 40, 69, 79)])
    areas = [masks.area(rle) for rle in track.objects[0]]
    assert areas[:11] == [1600, 1600, 1600, 1600, 1600, 1600, 1360, 1120, 880, 640, 400]
    assert areas[13:] == [0, 0, 0]


def test_object_that_drives_out_leaves_a_speck_at_most(tracker):
    """The square moves 4 pixels left a frame over still ground: 160 pixels fewer a frame from frame 8 on."""
    skin = texture(150, 250, 3)
    frames = []
    for t in range(20):
        frame, left = texture(60, 120, 1), 30 - 4 * t
        frame[40:80, max(0, left) : max(0, left + 40)] = skin[40:80, max(0, -left) : 40]
        frames.append(frame)
    track = tracker.track(tracker.encode(frames), keyframe=0, boxes=[(30, 40, 69, 79)])
    areas = [masks.area(rle) for rle in track.objects[0]]
    assert areas[:17] == [1600] * 8 + [1520 - 160 * k for k in range(9)]
    assert max(areas[18:]) < 50


@pytest.mark.parametrize(
    "box", [(0, 0, 159, 119), (-5, -5, 500, 500), (50, 50, 50, 50), (0, 0, 159, 0), (159, 0, 159, 119)]
)
def test_box_of_any_shape_gives_an_object_inside_it(tracker, box):
    frames, _ = video(3)
    track = tracker.track(tracker.encode(frames), keyframe=1, boxes=[box])
    x1, y1, x2, y2 = masks.box(track.objects[0][1])
    assert (x1 >= box[0], y1 >= box[1], x2 <= box[2], y2 <= box[3]) == (True,) * 4


def test_box_outside_or_degenerate_or_none(tracker):
    frames, truth = video(3)
    encoded = tracker.encode(frames)
    boxes = [(-30.0, 0.0, -1.0, 9.0), box_of(truth[1]), (20.0, 30.0, 19.0, 40.0), (160.0, 0.0, 170.0, 9.0)]
    track = tracker.track(encoded, keyframe=1, boxes=boxes)
    assert [sum(map(masks.area, rles)) > 0 for rles in track.objects] == [False, True, False, False]
    assert tracker.track(encoded, keyframe=1, boxes=[]).objects == ()
    assert tracker.track(encoded, keyframe=1, boxes=[]).length == 3


def test_uniform_picture_keeps_the_ellipse_of_the_box(tracker):
    """No colour to cut along: the box's own ellipse, grown by a tenth, and it stays where it is."""
    frames = [np.full((50, 60, 3), 128, np.uint8)] * 3
    track = tracker.track(tracker.encode(frames), keyframe=1, boxes=[(10, 10, 29, 29)])
    y, x = np.ogrid[:50, :60]
    expected = np.hypot((x - 19.5) / 10, (y - 19.5) / 10) <= 1.1
    expected &= (x >= 10) & (x < 30) & (y >= 10) & (y < 30)
    assert all(np.array_equal(found, expected) for found in masks.track_unions(track))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (12, 200), (5, 5)])
def test_tiny_frames(tracker, size):
    frames = [np.random.default_rng(t).integers(0, 255, (*size, 3), dtype=np.uint8) for t in range(3)]
    track = tracker.track(tracker.encode(frames), keyframe=1, boxes=[(0, 0, size[1] - 1, size[0] - 1)])
    assert track.size == size
    assert masks.area(track.objects[0][1]) > 0


def test_hundreds_of_boxes(tracker):
    frames, truth = video(2)
    encoded = tracker.encode(frames)
    boxes = [
        box_of(truth[0]),
        *[(float(k % 90), float(k % 60), float(k % 90 + 9), float(k % 60 + 9)) for k in range(200)],
    ]
    track = tracker.track(encoded, keyframe=0, boxes=boxes)
    assert len(track.objects) == 201
    assert track.objects[0] == tracker.track(encoded, keyframe=0, boxes=boxes[:1]).objects[0]


def test_callers_mistakes_are_named(tracker):
    frames, _ = video(2)
    encoded = tracker.encode(frames)
    with pytest.raises(ValueError, match=r"box 0 is \(0\.0, inf, 5\.0, 5\.0\)"):
        tracker.track(encoded, keyframe=0, boxes=[(0.0, float("inf"), 5.0, 5.0)])
    with pytest.raises(ValueError, match=r"keyframe 2 of a video of 2 frames \(0 to 1\)"):
        tracker.track(encoded, keyframe=2, boxes=[])
    with pytest.raises(ValueError, match="no frames"):
        tracker.encode([])
    with pytest.raises(ValueError, match=r"frame 1 is \(100, 160\), the frames before it are \(120, 160\)"):
        tracker.encode([frames[0], frames[1][:100]])
    with pytest.raises(ValueError, match=r"frame 0 is uint8 \(120, 160\)"):
        tracker.encode([frames[0][..., 0]])
    with pytest.raises(ValueError, match="working_side is 0"):
        GrabCutTracker(working_side=0)
