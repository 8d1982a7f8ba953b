"""Inference on Ray workers: the bytes of a single process, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import psutil
import pytest
from commands import command, heed_interrupts, run, tree

KILLS = int(os.environ.get("VEASON_TEST_WORKER_KILLS", "3"))
PER_RUN = 4
"""Kills in one run, at most: with more the same sample could lose too many workers."""
STORE = 100 * 1024**2


@pytest.fixture(scope="module")
def raylets():
    """(the address of a cluster of two nodes on this machine, its raylets)"""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE}
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent)  # the workers find the modules beside the tests
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        other = cluster.add_node(**node)
    yield (
        cluster.address,
        [psutil.Process(n.all_processes["raylet"][0].process.pid) for n in (cluster.head_node, other)],
    )
    cluster.shutdown()


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A world, and 60 of its samples to be predicted."""
    from demo import world as build

    root = tmp_path_factory.mktemp("many") / "world"
    build.main(["--out", str(root), "--videos", "10", "--seed", "7", "--no-policy"])
    return ["--data-root", root, "--split", "train", "--policy", "oracle", "--tracker", "grabcut", "--limit", 60]


@pytest.fixture(scope="module")
def single(options, tmp_path_factory):
    """The files that a single process writes."""
    path = tmp_path_factory.mktemp("single") / "run"
    run("inference.predict", *options, "--output", path)
    assert len((path / "predictions.jsonl").read_bytes().splitlines()) == 60
    return tree(path)


def workers(raylets) -> list[psutil.Process]:
    """The processes of actors on these raylets."""
    found = []
    for raylet in raylets:
        for child in raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "Worker" in "".join(child.cmdline()[:1]) and "ray::" in child.cmdline()[0]:
                    found.append(child)
    return found


def start(options, path, address) -> subprocess.Popen:
    line = command("inference.predict", *options, "--workers", 2, "--address", address, "--output", path)
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_workers_change_nothing(raylets, options, single, tmp_path):
    """SIGKILL for one of two policies and two trackers on two nodes at a random moment, again and again."""
    address, nodes = raylets
    rng, kills = Random(0), 0
    while kills < KILLS:
        path = tmp_path / "run"
        process, here = start(options, path, address), 0
        journal = path / "predictions.jsonl"
        while process.poll() is None:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if here < min(PER_RUN, KILLS - kills) and (victims := workers(nodes)) and lines >= 12 * here:
                time.sleep(rng.uniform(0, 1.5))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims).pid, signal.SIGKILL)
                    here += 1
            time.sleep(0.02)
        assert process.returncode == 0, process.stderr.read()
        assert here, "the run was over before anything was killed"
        kills += here
        keys = [(r["video"], r["exp_id"]) for r in map(json.loads, journal.read_text().splitlines())]
        assert len(set(keys)) == len(keys) == 60
        assert tree(path) == single
        shutil.rmtree(path)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(raylets, options, single, tmp_path):
    """One process is stopped, not killed: its connection stays, its answer never comes."""
    address, nodes = raylets
    process = start([*options, "--stuck-after", 15], tmp_path, address)  # busy machines take seconds for a unit
    journal = tmp_path / "predictions.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    victim = next(worker for worker in workers(nodes) if "TrackerWorker" in worker.cmdline()[0])
    victim.suspend()
    assert process.wait(timeout=900) == 0, process.stderr.read()
    assert tree(tmp_path) == single


@pytest.mark.slow
def test_a_killed_driver_is_resumed_by_a_single_process(raylets, options, single, tmp_path):
    address, nodes = raylets
    process = start(options, tmp_path, address)
    journal = tmp_path / "predictions.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n")
    assert kept >= 5
    run("inference.predict", *options, "--output", tmp_path)
    assert tree(tmp_path) == single
    deadline = time.monotonic() + 600
    while workers(nodes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(nodes)  # a dead driver leaves none behind


def test_a_cluster_of_its_own_and_rle_masks(options, tmp_path):
    """Without --address; the masks as lines, the same as one process writes."""
    few = [*options[:-1], 9, "--masks", "rle"]
    run("inference.predict", *few, "--workers", 1, "--output", tmp_path / "many")
    run("inference.predict", *few, "--output", tmp_path / "single")
    for name in ("masks.jsonl", "predictions.jsonl"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


@pytest.mark.slow
def test_a_worker_that_meets_a_broken_frame_ends_the_run_with_one_clear_line(raylets, hand_made, tmp_path):
    hand_made.meta["videos"]["UVO/ok"] = hand_made.meta["videos"][hand_made.video]
    shutil.copytree(hand_made.frame("00000").parent, hand_made.path / "JPEGImages" / "UVO" / "ok")
    hand_made.frame("00010").write_bytes(b"not a picture")
    words = ["--data-root", hand_made.write(), "--workers", 1, "--address", raylets[0], "--output", tmp_path / "out"]
    said = run("inference.predict", *words, code=2)
    assert said.count("the picture cannot be decoded") == 1
    assert "while predicting UVO/-a_b/" in said
    assert "Traceback" not in said
    kept = {json.loads(line)["exp_id"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()}
    assert "2" in kept  # the absent target was finished


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--gpus", "1"],
            "--gpus 1, but the nodes have 1 CPU, 0 GPU; 1 CPU, 0 GPU, of which 2 CPU, 0 GPU are free; give --workers N",
        ),
        (["--workers", "1", "--policy", "hf"], "--policy hf needs --model"),
        (["--workers", "1", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_what_cannot_start_says_why(raylets, hand_made, tmp_path, words, message):
    line = ["--data-root", hand_made.write(), "--output", tmp_path / "out", "--address", raylets[0], *words]
    assert message in run("inference.predict", *line, code=2)


def changed(change: str, *words: object) -> str:
    """Standard error of a predict with something changed; it must end with exit code 2. Not in this process, which may
    have a Ray of its own."""
    script = Path(__file__).with_name("changed_predict.py")
    line = [sys.executable, str(script), change, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.slow
def test_no_room(raylets, hand_made, tmp_path):
    words = ["--data-root", hand_made.write(), "--workers", "3", "--address", raylets[0], "--output", tmp_path / "out"]
    assert "no room for 3 workers with 1 CPU, 0 GPU each after 0.5 s; the nodes" in changed("impatient", *words)


@pytest.mark.slow
def test_a_worker_that_dies_every_time_ends_the_run(raylets, hand_made, tmp_path):
    """Its frames kill: a tracker that is lost over them again and again."""
    words = ["--data-root", hand_made.write(), "--workers", "1", "--address", raylets[0], "--output", tmp_path / "out"]
    said = changed("mortal", *words)
    assert re.search(r"4 workers in a row were lost over UVO/-a_b, .* What is finished is kept", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM; the same command goes on where this one was"),
        (signal.SIGINT, 130, "stopped; the same command goes on where this one was"),
        (signal.SIGKILL, -signal.SIGKILL, None),
    ],
)
def test_a_run_that_is_stopped_leaves_no_process_behind(options, single, tmp_path, number, code, line):
    """With a cluster of its own. After SIGKILL nobody is left to end Ray, whose processes then leave by themselves."""
    words = command("inference.predict", *options, "--workers", 1, "--output", tmp_path)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes, preexec_fn=heed_interrupts)
    journal, seen = tmp_path / "predictions.jsonl", {}
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        seen |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
        time.sleep(0.05)
    assert any("TrackerWorker" in "".join(child.cmdline()) for child in seen.values() if child.is_running())
    process.send_signal(number)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == code
    assert line is None or [part for part in said.splitlines() if "exp/s" not in part and part.strip()] == [line]
    _, left = psutil.wait_procs(list(seen.values()), timeout=600)
    assert not left
    run("inference.predict", *options, "--output", tmp_path)
    assert tree(tmp_path) == single
