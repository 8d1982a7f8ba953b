"""The real commands, end to end, as a person runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from random import Random

import cv2
import numpy as np
import pytest
from commands import command, heed_interrupts, run, tree

KILLS = int(os.environ.get("VEASON_TEST_KILLS", "20"))


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(world, tmp_path):
    options = ["--data-root", world, "--split", "train", "--policy", "oracle", "--tracker", "grabcut"]
    run("inference.predict", *options, "--output", tmp_path / "whole")
    expected = tree(tmp_path / "whole")
    rng, kills, path = Random(0), 0, tmp_path / "killed"
    while kills < KILLS:
        process = subprocess.Popen(command("inference.predict", *options, "--output", path), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        while not (path / ".lock-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            process.wait(timeout=rng.uniform(0.2, 2.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        assert tree(path) == expected  # finished between two kills: check it and begin again
        shutil.rmtree(path)
    run("inference.predict", *options, "--output", path)
    assert tree(path) == expected


@pytest.mark.slow
def test_two_shards_replaying_a_run_give_that_run(world, tmp_path):
    """Two processes at once, replaying what one process wrote."""
    options = [
        "--data-root",
        world,
        "--policy",
        "replay",
        "--replay",
        tmp_path / "replay.jsonl",
        "--tracker",
        "grabcut",
    ]
    oracle = ["--data-root", world, "--policy", "oracle", "--tracker", "grabcut", "--limit", 12]
    run("inference.predict", *oracle, "--output", tmp_path / "oracle")
    shutil.copy(tmp_path / "oracle" / "predictions.jsonl", tmp_path / "replay.jsonl")
    parts = [
        subprocess.Popen(
            command("inference.predict", *options, "--limit", 12, "--shard", f"{i}/2", "--output", tmp_path / "parts")
        )
        for i in range(2)
    ]
    assert [part.wait(timeout=900) for part in parts] == [0, 0]
    assert tree(tmp_path / "parts") == tree(tmp_path / "oracle")


@pytest.mark.slow
def test_segment_a_video_file_with_a_box(tmp_path):
    from fractions import Fraction

    from veason import video

    def frame(t: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        picture = rng.integers(60, 90, (95, 121, 3), dtype=np.uint8)  # odd sides
        texture = cv2.resize(rng.integers(120, 255, (6, 6), dtype=np.uint8), (30, 30))
        picture[30:60, 10 + 4 * t : 40 + 4 * t] = np.stack([texture, texture // 4, texture // 4], axis=-1)
        return picture

    video.encode(tmp_path / "clip.mp4", (frame(t) for t in range(8)), rate=Fraction(8))
    printed = run(
        "inference.segment", tmp_path / "clip.mp4", "the red square", "--output", tmp_path / "out",
        "--policy", "replay", "--keyframe", 2, "--box", "18,30,47,59", "--model-size", 84,
    )  # fmt: skip
    assert "thinking: Replayed." in printed
    assert "keyframe: 2" in printed
    played = video.decode(tmp_path / "out" / "overlay.mp4")
    assert played.frames.shape == (8, 96, 122, 3)
    assert played.rate == 8
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "00007.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (96, 122)  # as the video was encoded
    truth = np.zeros_like(mask, dtype=bool)
    truth[30:60, 38:68] = True
    assert ((mask > 0) & truth).sum() / ((mask > 0) | truth).sum() > 0.8
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["keyframe"] == 2
    assert (tmp_path / "out" / "keyframe.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-root", "/nowhere"], "no such folder"),
        (["--data-root", "{root}", "--policy", "hf"], "--policy hf needs --model"),
        (["--data-root", "{root}", "--policy", "replay"], "--policy replay needs --replay"),
        (["--data-root", "{root}", "--tracker", "sam2"], "needs --sam2-checkpoint"),
        (["--data-root", "{root}", "--model-size", "100"], "not a multiple of 28"),
        (["--data-root", "{root}", "--frames", "0"], "at least 1"),
        (["--data-root", "{root}", "--limit", "0"], "--limit must be at least 1"),
        (["--data-root", "{root}", "--shard", "2/2"], "expected i/n with i from 0 to n-1"),
    ],
)
def test_a_wrong_option_is_one_clear_line(hand_made, tmp_path, arguments, message):
    filled = [argument.format(root=hand_made.write()) for argument in arguments]
    done = subprocess.run(
        command("inference.predict", *filled, "--output", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["inference.predict", "inference.segment"])
def test_help_teaches(module):
    printed = run(module, "--help")
    assert "python -m inference." in printed
    assert "--tracker" in printed


def test_an_interrupt_is_one_line_and_the_run_goes_on(world, tmp_path):
    words = ["--data-root", world, "--split", "train", "--policy", "oracle", "--output", tmp_path / "run"]
    line = command("inference.predict", *words)
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    journal = tmp_path / "run" / "predictions.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert [line for line in said.splitlines() if "exp/s" not in line] == [
        "stopped; the same command goes on where this one was"
    ]
    kept = journal.read_bytes()
    run("inference.predict", *words)
    assert journal.read_bytes().startswith(kept)


def test_a_second_process_in_a_run_folder_is_refused(world, tmp_path):
    words = ["--data-root", world, "--split", "train", "--policy", "oracle", "--output", tmp_path / "run"]
    first = subprocess.Popen(command("inference.predict", *words), stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run" / "predictions.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.01)
        assert "another process is writing here; wait for it or end it" in run("inference.predict", *words, code=2)
    finally:
        first.terminate()
        first.wait()


@pytest.mark.parametrize("part", ["timings.jsonl", "predictions.jsonl", "Annotations", "a picture"])
def test_a_finished_run_that_lost_a_part_is_not_called_done(hand_made, tmp_path, part):
    words = ["--data-root", hand_made.write(), "--policy", "oracle", "--output", tmp_path / "run"]
    run("inference.predict", *words)
    whole = tree(tmp_path / "run")
    path = tmp_path / "run" / part
    if part == "a picture":
        (tmp_path / "run" / "Annotations" / "UVO" / "-a_b" / "0" / "00005.png").write_bytes(b"")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:-9])
    done = subprocess.run(command("inference.predict", *words), capture_output=True, text=True, check=True)
    assert ("made again" in done.stderr) == (part != "predictions.jsonl")
    assert tree(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("meta", "meta_sha256: "),
        ("frame", r"frames: .* put back what was there"),
        ("masks", r"data masks: "),
    ],
)
def test_other_inputs_under_the_same_path_are_refused(hand_made, tmp_path, change, message):
    words = ["--data-root", hand_made.write(), "--policy", "oracle", "--output", tmp_path / "run", "--limit", 1]
    run("inference.predict", *words)
    if change == "frame":
        os.utime(hand_made.frame("00015"), (5, 5))
    else:
        name = {"meta": "meta_expressions_valid_.json", "masks": "mask_dict.json"}[change]
        (hand_made.path / name).write_text((hand_made.path / name).read_text() + " ")
    said = run("inference.predict", *words, code=2)
    assert re.search(message, said)
    assert len(said.splitlines()) == 1


def test_a_higher_limit_goes_on_and_a_lower_one_is_refused(hand_made, tmp_path):
    words = ["--data-root", hand_made.write(), "--policy", "oracle", "--output", tmp_path / "run"]
    run("inference.predict", *words, "--limit", 1)
    run("inference.predict", *words)
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 3
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["settings"]["limit"], record["earlier_settings"][0]["limit"]) == (None, 1)
    assert "raise --limit" in run("inference.predict", *words, "--limit", 2, code=2)


@pytest.mark.parametrize("place", ["the root", "a video's frames", "a file", "below a file"])
def test_a_place_that_cannot_be_the_output_is_one_line(hand_made, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    output = {
        "the root": hand_made.path,
        "a video's frames": hand_made.frame("00000").parent / "run",
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
    }[place]
    said = run("inference.predict", "--data-root", hand_made.write(), "--output", output, code=2)
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert (tmp_path / "file").read_text() == "mine"
