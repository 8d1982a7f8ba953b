"""A line of masks.jsonl: what is written is what is read, and nothing else is taken for a line."""

import json
from pathlib import Path

import numpy as np
import pytest

from veason import mask_lines, masks
from veason.errors import DataError
from veason.types import MaskTrack, VideoSample

SAMPLE = VideoSample("revos", "UVO/-a", "3", "the cat", ("00000", "00001", "00002"), Path("/f"), (2, 3))


def mask(*inside):
    """2 x 3 pixels, the numbered ones inside, counted down the columns as RLEs count."""
    flat = np.zeros(6, bool)
    flat[list(inside)] = True
    return flat.reshape(3, 2).T


def test_a_line_by_hand():
    """Pixels 1 and 2 inside: runs 1 outside, 2 inside, 3 outside, each one character from '0' on."""
    line = mask_lines.record(SAMPLE, [masks.encode(mask(1, 2)), None, masks.encode(mask())])
    assert line == {"video": "UVO/-a", "exp_id": "3", "size": [2, 3], "counts": ["123", None, None]}


def test_the_objects_of_a_track_are_merged():
    first, second = [masks.encode(mask(0)), masks.encode(mask())], [masks.encode(mask(1)), masks.encode(mask())]
    two = VideoSample("revos", "v", "0", "x", ("0", "1"), Path("/f"), (2, 3))
    track = MaskTrack(size=(2, 3), objects=(tuple(first), tuple(second)), length=2)
    line = mask_lines.parse(json.loads(json.dumps(mask_lines.track_record(two, track))), "here")
    assert masks.decode(line.rle(0), (2, 3)).tolist() == mask(0, 1).tolist()
    assert line.rle(1) is None
    assert mask_lines.track_record(two, MaskTrack.empty((2, 3), 2))["counts"] == [None, None]


GOOD = {"video": "v", "exp_id": "0", "size": [2, 3], "counts": ["123", None]}


@pytest.mark.parametrize(
    "line",
    [
        [],
        None,
        {**GOOD, "video": 3},
        {**GOOD, "exp_id": None},
        {**GOOD, "size": [2]},
        {**GOOD, "size": [2, -3]},
        {**GOOD, "size": [2, 3.0]},
        {**GOOD, "size": [True, True]},
        {**GOOD, "counts": "123"},
        {**GOOD, "counts": [{"size": [2, 3], "counts": "123"}]},
        {key: value for key, value in GOOD.items() if key != "counts"},
    ],
)
def test_what_is_no_line_is_refused(line):
    assert mask_lines.parse(GOOD, "here").counts == ("123", None)
    with pytest.raises(DataError, match=r"^here: "):
        mask_lines.parse(line, "here")
