"""Is what the expressions say true? Asked again of the written masks and pictures, by other means than the world's."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from demo.scene import COLOURS


class Video:
    """The content of the files of one video."""

    def __init__(self, world, video):
        self.entry = world.videos[video]
        thousand = 3000 + self.entry["vid_id"]  # ids of a video lie in one block of a thousand, in the order of obj_id
        annos = sorted(int(anno) for anno in world.mask_dict if int(anno) // 1000 == thousand)
        self.masks = dict(enumerate(world.masks(anno) for anno in annos))
        self.short = min(self.entry["height"], self.entry["width"])
        self.frame = lambda t: world.frame(video, t).astype(float)

    def area(self, o):
        return self.masks[o].sum(axis=(1, 2))

    def alone(self, o):
        """Frames where the object is whole: off the border, and its pixels are nobody else's neighbours."""
        others = [m for p, m in self.masks.items() if p != o]
        kernel = np.ones((3, 3), np.uint8)
        whole = []
        for t, mask in enumerate(self.masks[o]):
            near = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
            edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            if mask.any() and not edge and not any((near & other[t]).any() for other in others):
                whole.append(t)
        return whole

    def middle(self, o, t):
        y, x = np.nonzero(self.masks[o][t])
        return np.array([x.mean(), y.mean()]) / self.short

    def colour(self, o):
        t = int(self.area(o).argmax())
        inner = cv2.erode(self.masks[o][t].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        seen = np.median(self.frame(t)[inner], axis=0)
        return min(COLOURS, key=lambda name: np.linalg.norm(seen / np.linalg.norm(seen) - _unit(name)))

    def kind(self, o):
        t = max(self.alone(o), key=lambda t: self.area(o)[t])
        (contour,), _ = cv2.findContours(self.masks[o][t].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        area, (_, sides, _) = cv2.contourArea(contour), cv2.minAreaRect(contour)
        if area / cv2.contourArea(cv2.convexHull(contour)) < 0.8:
            return "star"
        fill, slim = area / (sides[0] * sides[1]), max(sides) / min(sides)
        if fill < 0.65:
            return "triangle"
        return "square" if fill > 0.9 else "ellipse" if slim > 1.4 else "circle"

    def lasts(self, o):
        seen = np.flatnonzero(self.area(o))
        return seen[0], seen[-1]


def _unit(name):
    return np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name])


def way(v, o):
    """Displacement between two frames in which nothing overlaps the object."""
    others = np.any([m for p, m in v.masks.items() if p != o] or [np.zeros_like(v.masks[o])], axis=0)
    free = [t for t, m in enumerate(v.masks[o]) if m.any() and not (m & others[t]).any()]
    return v.middle(o, free[-1]) - v.middle(o, free[0])


def growth(v, o):
    whole = v.alone(o)
    return v.area(o)[whole[-1]] / v.area(o)[whole[0]] if whole else 1.0


def speed(v, o):
    pairs = [(t, t + 1) for t in v.alone(o) if t + 1 in v.alone(o)]
    return np.mean([np.linalg.norm(v.middle(o, b) - v.middle(o, a)) for a, b in pairs])


def path(v, o):
    whole = v.alone(o)
    return np.linalg.norm(v.middle(o, whole[-1]) - v.middle(o, whole[0]))


def overlaps(v, o):
    return any((v.masks[o] & m).any() for p, m in v.masks.items() if p != o)


def extreme(score, v):
    return [max(v.masks, key=score)]


def place(v, side, when="beginning"):
    axis, sign = {"far left": (0, -1), "far right": (0, 1), "top": (1, -1), "bottom": (1, 1)}[side]
    t = {"beginning": 0, "end": -1}[when]
    return extreme(lambda o: sign * v.middle(o, t)[axis] if v.masks[o][t].any() else -np.inf, v)


def size(v, word, when="beginning"):
    t = {"beginning": 0, "end": -1}[when]
    sign = {"largest": 1, "smallest": -1}[word]
    return extreme(lambda o: sign * v.area(o)[t] if v.masks[o][t].any() else -np.inf, v)


def is_hidden(v, o):
    """It has fewer pixels where it overlaps another than where it stands alone."""
    shared = [t for t, m in enumerate(v.masks[o]) if any((m & n[t]).any() for p, n in v.masks.items() if p != o)]
    return bool(shared) and min(v.area(o)[shared]) < 0.8 * np.median(v.area(o)[v.alone(o)])


MOST = {"leftmost": "far left", "rightmost": "far right", "topmost": "top", "lowest": "bottom"}
AXIS = {"to the left": (0, -1), "to the right": (0, 1), "upwards": (1, -1), "downwards": (1, 1)}
COLOUR, KIND = "|".join(COLOURS), "circle|square|triangle|star|ellipse"


def late(v, o):
    return v.lasts(o)[0] > 0


def left(v, o):
    return v.lasts(o)[1] < len(v.entry["frames"]) - 1


RULES = [
    (rf"the ({COLOUR}) ({KIND})", lambda v, c, k: [o for o in v.masks if v.colour(o) == c and v.kind(o) == k]),
    (rf"the ({COLOUR}) shape|which shape is ({COLOUR})\?", lambda v, *c: [o for o in v.masks if v.colour(o) in c]),
    (
        rf"the ({KIND})|which of the shapes is an? ({KIND})\?|the (?:two|three|four) ({KIND})s"
        rf"|which shapes are ({KIND})s\?",
        lambda v, *k: [o for o in v.masks if v.kind(o) in k],
    ),
    (r"all shapes", lambda v: list(v.masks)),
    (rf"all shapes except the ({COLOUR}) (?:{KIND})", lambda v, c: [o for o in v.masks if v.colour(o) != c]),
    (r"the (leftmost|rightmost|topmost|lowest) shape", lambda v, m: place(v, MOST[m], "end")),
    (
        r"(?:the shape|which shape is) (?:on|at) the (far left|far right|top|bottom) of the picture"
        r"(?: at the (\w+))?\??",
        place,
    ),
    (
        r"(?:which shape is|the shape that is|the)(?: the)? (largest|smallest)(?: shape)?(?: at the (\w+))?\??",
        size,
    ),
    (r".*(?:is|are) growing\??", lambda v: [o for o in v.masks if growth(v, o) > 1.3]),
    (r".*(?:is|are) shrinking\??", lambda v: [o for o in v.masks if growth(v, o) < 0.75]),
    (
        rf".* moves? ({'|'.join(AXIS)})\??",
        lambda v, w: [o for o in v.masks if AXIS[w][1] * way(v, o)[AXIS[w][0]] > 0.1],
    ),
    (r".*fastest\??(?: shape)?", lambda v: extreme(lambda o: speed(v, o), v)),
    (r".* do(?:es)? not move\??", lambda v: [o for o in v.masks if path(v, o) < 0.05]),
    (r".* leaves? the picture\??", lambda v: [o for o in v.masks if left(v, o)]),
    (r".* leaves the picture first\??", lambda v: extreme(lambda o: -v.lasts(o)[1], v)),
    (
        r".* leaves the picture last\??",
        lambda v: [max((o for o in v.masks if left(v, o)), key=lambda o: v.lasts(o)[1])],
    ),
    (r".* comes? into the picture later\??", lambda v: [o for o in v.masks if late(v, o)]),
    (r".* comes into the picture last\??", lambda v: extreme(lambda o: v.lasts(o)[0], v)),
    (r".* two shapes (?:that )?cross.*", lambda v: [o for o in v.masks if overlaps(v, o)]),
    (r".* fills the whole picture at the end\??", lambda v: [o for o in v.masks if v.masks[o][-1].all()]),
    (
        r"(?:the|which) shape (?:is )?hidden by another one\??",
        lambda v: [o for o in v.masks if is_hidden(v, o)],
    ),
]


def answer(video, text):
    """(rule, objects) of the first rule that reads the text; None if no rule does."""
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, text):
            return pattern, rule(video, *(group for group in match.groups() if group is not None))
    return None


def test_answers_follow_from_the_written_files(world):
    used, checked, skipped = set(), 0, 0
    for key, entry in world.videos.items():
        video = Video(world, key)
        for record in entry["expressions"].values():
            found = answer(video, record["exp"])
            if found is None:
                skipped += 1
                continue
            pattern, objects = found
            assert sorted(objects) == record["obj_id"], f"{key}: {record['exp']!r}"
            used.add(pattern)
            checked += 1
    assert checked >= 60
    assert skipped <= 0.2 * checked
    assert len(used) >= 12


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("which shape is growing?", [0]),
        ("the shape that moves to the right", [1]),
        ("which shape is the largest at the end?", [0]),
        ("the lowest shape", [1]),
        ("which shape leaves the picture?", []),
        ("which shape is yodelling?", None),
    ],
)
def test_the_check_itself_on_a_video_made_by_hand(text, objects):
    grows, moves = np.zeros((3, 40, 40), bool), np.zeros((3, 40, 40), bool)
    for t, side in enumerate((4, 6, 8)):
        grows[t, 4 : 4 + side, 4 : 4 + side] = True  # area 16 -> 64
        moves[t, 28:34, 6 + 8 * t : 12 + 8 * t] = True  # area 36, 16 px to the right
    video = Video.__new__(Video)
    video.masks, video.short, video.entry = {0: grows, 1: moves}, 40, {"frames": ["00000", "00001", "00002"]}
    found = answer(video, text)
    assert (found and found[1]) == objects
