"""Segmenting one video: what goes in is questioned, what comes out is of this run alone."""

import json
import logging
import subprocess
from fractions import Fraction

import cv2
import numpy as np
import pytest
from chat_server import Act, ChatServer, completion
from commands import command

from inference import segment
from veason import video
from veason.errors import DataError
from veason.trackers import open_tracker

BOX = ["--box", "10,20,39,49"]


def picture(t: int) -> np.ndarray:
    frame = np.full((60, 90, 3), 40, np.uint8)
    frame[20:50, 10 + 2 * t : 40 + 2 * t] = 220
    return frame


@pytest.fixture
def clip(tmp_path):
    """A folder of 11 pictures, 90 x 60 pixels."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for t in range(11):
        assert cv2.imwrite(str(folder / f"{t}.png"), picture(t))
    return folder


@pytest.fixture
def film(tmp_path):
    """A file of 11 frames."""
    video.encode(tmp_path / "film.mp4", (picture(t) for t in range(11)), rate=Fraction(5))
    return tmp_path / "film.mp4"


def segmented(source, output, *words):
    segment.main([str(source), "the bright square", "--output", str(output), *map(str, words)])
    return json.loads((output / "prediction.json").read_text())


def test_a_box_alone_is_replayed_on_frame_0_and_says_so(clip, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    record = segmented(clip, tmp_path / "out", *BOX)
    assert (record["keyframe"], record["reply"].startswith("<think>Replayed.")) == (0, True)
    assert record["policy"] == {"name": "replay", "replay": "--box"}
    assert "--box without --keyframe: on frame 0" in caplog.messages
    assert capsys.readouterr().out.count("wrote") == 4


def test_a_folder_that_was_used_holds_the_results_of_the_last_run_alone(clip, film, tmp_path, capsys):
    out = tmp_path / "out"
    segmented(clip, out, *BOX)
    capsys.readouterr()
    with ChatServer(lambda asked: Act(completion("I cannot see it."))).serve() as url:
        words = ["--policy", "openai", "--base-url", url, "--model", "m", "--limit", 3]
        record = segmented(film, out, *words, "--frames", 2, "--model-size", 28)
    assert record["problem"] == "no_answer"
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert not (out / "keyframe.png").exists()
    printed = capsys.readouterr().out
    assert "keyframe.png" not in printed
    assert "no usable answer, so the masks are empty" in printed
    assert "hint:     the model does not answer in the format it is asked for" in printed


def test_masks_of_something_else_are_not_mixed_with(clip, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "mine.png").write_bytes(b"mine")
    with pytest.raises(DataError, match="masks: not written by this command"):
        segmented(clip, tmp_path / "out", *BOX)
    assert (tmp_path / "out" / "masks" / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "0.1,0.2,0.5,0.6"], r"between 0 and 1.*90 x 60 pixels.*they would be 9,12,45,36"),
        (["--box", "100,20,139,49"], r"lies outside the picture of 90 x 60 pixels \(width x height\)"),
        (["--box", "39,20,10,49"], "second corner left of or above"),
        ([*BOX, "--keyframe", "11"], "--keyframe 11: the 11 frames are 0 to 10"),
        ([*BOX, "--keyframe", "-1"], "--keyframe -1: the 11 frames are 0 to 10"),
        ([*BOX, "--keyframe", "5", "--stride", "4"], "5: the 3 frames that --stride 4 leaves are 0 to 2"),
        ([*BOX, "--stride", "-2"], "--stride and --limit must be at least 1"),
        ([*BOX, "--policy", "hf"], "do not go with --policy hf"),
        ([*BOX, "--replay", "x.jsonl"], "give one of them"),
        (["--keyframe", "2"], "give a --box with it"),
        (["--policy", "replay"], "needs --box X1,Y1,X2,Y2"),
        ([], "--policy hf needs --model"),
        ([*BOX, "--temperature", "inf"], "--temperature at least 0"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(clip, tmp_path, words, message):
    with pytest.raises(DataError, match=message):
        segmented(clip, tmp_path / "out", *words)


def test_the_output_is_not_the_input(clip):
    with pytest.raises(DataError, match="is the input; choose another folder"):
        segmented(clip, clip, *BOX)


def test_a_box_that_leaves_the_picture_is_told(clip, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    segmented(clip, tmp_path / "out", "--box", "10,20,139,49")
    assert "--box 10,20,139,49 is cut off at the border of the picture of 90 x 60" in caplog.text


@pytest.mark.parametrize("source", ["clip", "film"])
def test_striding_is_told_in_frames_of_the_video(request, tmp_path, capsys, source):
    record = segmented(request.getfixturevalue(source), tmp_path / "out", "--keyframe", 1, *BOX, "--stride", 4)
    assert record["keyframe"] == 1
    assert "keyframe: 1 (frame 4 of the video)" in capsys.readouterr().out
    assert sorted(int(path.stem) for path in (tmp_path / "out" / "masks").iterdir()) == [0, 4, 8]


def test_an_overlay_keeps_time_and_aspect(tmp_path):
    times = [Fraction(t) for t in (0, 1, 5, 6)]
    path, aspect = tmp_path / "odd.mp4", Fraction(2)
    video.encode(path, map(picture, range(3)), rate=Fraction(1, 2), times=times, pixel_aspect=aspect)
    segmented(path, tmp_path / "out", *BOX)
    played = video.decode(tmp_path / "out" / "overlay.mp4")
    assert (played.times, played.pixel_aspect) == (tuple(times), aspect)


def test_a_loose_reply_is_read_and_recorded_as_such(clip, tmp_path, capsys):
    said = "```json\n{'keyframe_timestamp': '5s', 'bbox_2d_list': [{'bbox_2d': [12, 18, 22, 28]}]}\n```"
    with ChatServer(lambda asked: Act(completion(said))).serve() as url:
        words = ["--policy", "openai", "--base-url", url, "--model", "m", "--frames", 3, "--model-size", 56]
        loose = segmented(clip, tmp_path / "out", *words)
        strict = segmented(clip, tmp_path / "strict", *words, "--reading", "strict")
    assert (loose["keyframe"], loose["reading"], loose["problem"]) == (5, "lenient", "no_answer")
    assert loose["repairs"] == ["no_tags", "fence", "single_quotes", "keyframe_form", "box_objects"]
    assert (strict["keyframe"], strict["reading"], strict["repairs"]) == (None, "strict", [])
    assert "read leniently: the answer object stands without answer tags" in capsys.readouterr().out


def test_a_reply_does_not_reach_the_terminal_raw(clip, tmp_path, capsys):
    said = "<think>\x1b[31mred\x07</think>nothing"
    with ChatServer(lambda asked: Act(completion(said))).serve() as url:
        words = ["--policy", "openai", "--base-url", url, "--model", "m", "--frames", 3, "--model-size", 56]
        segmented(clip, tmp_path / "out", *words)
    printed = capsys.readouterr().out
    assert "\\x1b[31mred\\x07" in printed
    assert "\x1b" not in printed


def test_a_tracker_says_how_far_it_is():
    frames = [picture(t) for t in range(5)]
    tracker, made = open_tracker("grabcut"), []
    track = tracker.track(
        tracker.encode(frames), keyframe=2, boxes=[(10, 20, 39, 49), (200, 0, 210, 9)], progress=lambda: made.append(1)
    )
    assert len(track.objects) == 2
    assert len(made) == 5  # the second box has nothing in the picture


def test_nobody_can_write_there_is_one_line(clip, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command("inference.segment", clip, "x", "--output", tmp_path / "file", *BOX), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
