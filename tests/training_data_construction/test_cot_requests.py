"""The pictures of a request: their sizes, red lines and JPEG encoding."""

import numpy as np
import pytest

from training_data_construction import cot_requests
from training_data_construction.cot_requests import build
from training_data_construction.cot_tasks import Rules, plan
from veason.datasets.revos import ReVOS
from veason.errors import DataError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1080, 1920), (360, 640)),
        ((1920, 1080), (640, 360)),
        ((720, 960), (480, 640)),
        ((1000, 1000), (480, 480)),
        ((120, 160), (120, 160)),  # never enlarged
        ((2, 5000), (1, 640)),
    ],
)
def test_frames_are_shrunk_to_fit(size, expected):
    assert cot_requests.shrunk_size(size) == expected


def red(frame):
    return (frame == cot_requests.RED).all(axis=2)


def test_a_box_is_two_pixels_wide_on_its_edge():
    frame = cot_requests.with_boxes(np.zeros((20, 30, 3), np.uint8), [(5, 4, 14, 9)], from_size=(20, 30))
    expected = np.zeros((20, 30), bool)
    expected[3:11, 4:16] = True  # one pixel outside the box
    expected[5:9, 6:14] = False
    assert np.array_equal(red(frame), expected)


def test_a_box_around_everything_is_seen():
    frame = cot_requests.with_boxes(np.zeros((20, 30, 3), np.uint8), [(0, 0, 29, 19)], from_size=(20, 30))
    assert not red(frame)[2:18, 2:28].any()
    assert red(frame).sum() == 20 * 30 - 16 * 26


def test_boxes_go_to_the_shrunk_frame():
    frame = cot_requests.with_boxes(np.zeros((20, 30, 3), np.uint8), [(20, 16, 59, 39)], from_size=(80, 120))
    rows, columns = np.nonzero(red(frame))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 11, 4, 16)


def test_a_request_shows_each_object_in_red(hand_made):
    dataset = ReVOS(hand_made.write(), split="valid")
    task = plan(dataset, 1, Rules(seed=0))
    pictures = [np.asarray(cot_requests.decode(url)).astype(int) for url in cot_requests.data_urls(task)]
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 4
    reddish = [(p[..., 0] > 180) & (p[..., 1] < 80) & (p[..., 2] < 80) for p in pictures]
    assert all(mask[19, 6 + 8 * t : 12 + 8 * t].all() for t, mask in enumerate(reddish))  # above the square
    assert [mask[1, 50:56].all() for mask in reddish] == [False, True, True, True]  # the dot comes late


def test_the_contact_sheet_holds_every_picture(hand_made):
    dataset = ReVOS(hand_made.write(), split="valid")
    urls = cot_requests.data_urls(plan(dataset, 1, Rules(seed=0)))
    sheet = cot_requests.contact_sheet(urls, [f"({t}s)" for t in range(4)], columns=3)
    assert sheet.size == (3 * (64 + 4), 2 * (48 + 20))
    assert sheet.getpixel((30, 16 + 25)) == cot_requests.decode(urls[0]).getpixel((30, 25))


def test_a_broken_frame_is_named(hand_made):
    dataset = ReVOS(hand_made.write(), split="valid")
    hand_made.frame("00010").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match=r"00010\.jpg: the picture cannot be decoded"):
        build(dataset, 0, Rules(seed=0))
