"""Commands that are stopped, killed or started twice: no process is left, nothing lost or doubled, and they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eval import convert, submit
from veason import mask_lines, mask_png, masks

ROOT = Path(__file__).parents[2]
SIZE, FRAMES, EXPRESSIONS = (480, 640), 20, 20
VIDEOS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """1,600 masks to score, convert or pack, seconds of work for two processes: links to twenty files."""
    root = tmp_path_factory.mktemp("work")
    names = [f"{t:05d}" for t in range(FRAMES)]
    noise = np.random.default_rng(0).random((6, 8)) < 0.5
    truth = np.kron(noise, np.ones((80, 80), bool))
    (root / "drawn").mkdir()
    for t, name in enumerate(names):
        (root / "drawn" / f"{name}.png").write_bytes(mask_png.encode(np.roll(truth, t + 1, axis=1)))
    videos = {}
    for video in VIDEOS:
        asked = {str(e): {"exp": "x", "obj_id": [0], "anno_id": [1], "type_id": 0} for e in range(EXPRESSIONS)}
        videos[video] = {"expressions": asked, "vid_id": 0, "frames": names, "height": SIZE[0], "width": SIZE[1]}
        (root / "pred" / video).mkdir(parents=True)
        for e in range(EXPRESSIONS):
            (root / "pred" / video / str(e)).symlink_to(root / "drawn")
    for place in ("revos/meta_expressions_valid_.json", "mevis/valid/meta_expressions.json"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(json.dumps({"videos": videos}))
    (root / "revos/mask_dict.json").write_text(json.dumps({"1": [masks.encode(truth)] * FRAMES}))
    return root


def commands(work, out):
    scored = ["--gt", work / "revos", "--pred", work / "pred"]
    return {
        "revos": ["eval.revos", *scored, "--out", out],
        "convert": ["eval.convert", work / "pred", out, "--to", "png", "--gt", work / "revos"],
        "submit": [
            *("eval.submit", "--dataset", "mevis", "--data-root", work / "mevis"),
            *("--pred", work / "pred", "--out", out / "s.zip"),
        ],
    }


def start(arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments), "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(true, seconds=600):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def busy(pid):
    """Two workers and the tracker of their semaphores are there, and each worker has loaded its libraries."""
    below = children(pid)
    return len(below) >= 3 and sum("cv2" in Path(f"/proc/{child}/maps").read_text() for child in below) >= 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("command", ["revos", "convert", "submit"])
def test_workers_end_with_the_command(work, tmp_path, command, number, status):
    process = start(commands(work, tmp_path / "out")[command])
    until(lambda: busy(process.pid))
    below = children(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=600)
    until(lambda: not any(map(alive, below)))
    assert process.returncode == status, said
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert said.count("\n") == 1, said
        if command == "submit":
            assert list((tmp_path / "out").iterdir()) == []  # no half archive either


def test_a_killed_conversion_goes_on(work, tmp_path):
    """Killed on the way, once in each form; the same command then ends as one that was never killed does."""
    for form, begun in (("png1", "Annotations/a/0"), ("rle", mask_lines.FILE)):
        out = tmp_path / form
        arguments = ["eval.convert", work / "pred", out, "--to", form, "--gt", work / "revos"]
        process = start(arguments)
        until(lambda path=out / begun: path.exists() and path.stat().st_size)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = start(arguments)
        said, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert "0 missing, 0 broken" in said
    lines = [json.loads(line) for line in (tmp_path / "rle" / mask_lines.FILE).read_text().splitlines()]
    assert sorted((line["video"], line["exp_id"]) for line in lines) == sorted(
        (video, str(e)) for video in VIDEOS for e in range(EXPRESSIONS)
    )
    assert len({tuple(line["counts"]) for line in lines}) == 1
    assert len(list((tmp_path / "png1/Annotations").rglob("*.png"))) == 4 * EXPRESSIONS * FRAMES
    assert not list((tmp_path / "png1").rglob("*.partial"))


@pytest.mark.parametrize("form", ["png", "rle"])
def test_two_conversions_into_one_folder(work, tmp_path, form):
    """The second is refused in one line while the first is at it, and no sample is written twice."""
    out = tmp_path / "out"
    arguments = ["eval.convert", work / "pred", out, "--to", form, "--gt", work / "revos"]
    first = start(arguments)
    until(lambda: (out / "convert.json").exists())
    first.send_signal(signal.SIGSTOP)  # a busy machine could let it end before the second looks
    second = start(arguments)
    _, refused = second.communicate(timeout=600)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert refused.count("\n") == 1
    assert "another process is writing here" in refused
    said, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    assert f"{4 * EXPRESSIONS} samples converted" in said
    if form == "rle":
        assert (out / mask_lines.FILE).read_bytes().count(b"\n") == 4 * EXPRESSIONS


def test_two_archives_of_one_name(work, tmp_path, capsys):
    arguments = [str(argument) for argument in commands(work, tmp_path)["submit"]]
    first = start(arguments)
    until(lambda: (tmp_path / ".s.zip.partial").exists())
    first.send_signal(signal.SIGSTOP)  # a busy machine could let it end before the second looks
    assert submit.main([*arguments[1:], "--workers", "1"]) == 2
    first.send_signal(signal.SIGCONT)
    assert ".s.zip.partial: another process is writing here" in capsys.readouterr().err
    said, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    assert "missing 0, doubled 0, extra 0, wrong 0" in said
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]


CRASH = """
import os, sys
from eval import convert
real = os.{call}
left = {left}
def deadly(*args, **kwargs):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return real(*args, **kwargs)
os.{call} = deadly
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("form", ["png", "rle"])
@pytest.mark.parametrize("call", ["replace", "mkdir", "open"])
def test_every_crash_point_resumes(world, tmp_path, form, call):
    """The process ends at the n-th rename, new folder or opened file, for every n until it ends by itself."""
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    expected = tmp_path / "whole"
    arguments = [str(pred), "--to", form, "--workers", "1"]
    assert convert.main([arguments[0], str(expected), *arguments[1:]]) == 0
    for left in (*range(12), *range(12, 60, 7)):
        out = tmp_path / f"out{left}"
        code = CRASH.format(call=call, left=left)
        run = [sys.executable, "-c", code, arguments[0], str(out), *arguments[1:]]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        assert convert.main([arguments[0], str(out), *arguments[1:]]) == 0
        assert contents(out) == contents(expected)
        if done.returncode == 0:
            break
    else:
        assert call == "open"  # there are more of them than were tried


def contents(folder):
    """Every file's bytes by its place, locks apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_an_emptied_mask_of_a_conversion_is_written_again(world, tmp_path):
    """As a machine that goes down may leave it: the name is there and the bytes are not."""
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    arguments = [str(pred), str(tmp_path / "a"), "--to", "png1", "--workers", "1"]
    assert convert.main(arguments) == 0
    before = contents(tmp_path / "a")
    (tmp_path / "a/Annotations/MOSE/b/1/00001.png").write_bytes(b"")
    (tmp_path / "a/Annotations/MOSE/b/0/00001.png").unlink()
    assert convert.main(arguments) == 0
    assert contents(tmp_path / "a") == before


def test_a_folder_with_nothing_but_hidden_leftovers_is_taken(world, tmp_path):
    """Killed while the first file was being written."""
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.convert.json.k3j4h5_a").write_text("{")
    assert convert.main([str(pred), str(tmp_path / "a"), "--to", "rle", "--workers", "1"]) == 0
    held = [".lock", "convert.json", "convert.jsonl", "masks.jsonl"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == held


def test_a_folder_of_something_else_is_left_as_it_is(world, tmp_path, capsys):
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").touch()
    assert convert.main([str(pred), str(tmp_path / "a"), "--to", "rle", "--workers", "1"]) == 2
    assert "not empty and no conversion" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]
