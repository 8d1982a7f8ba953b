"""The checks of ``make gpu-check``, on the CPU: each of them alone in this process, and the way they are run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import actor_checks
import engine_checks
import processes
import pytest
import sam2_checks
import test_checks
import torch
from outcome import FAILED, HEADER, OK, SKIPPED, Outcome, row
from processes import Processes

FAST = (actor_checks.build, actor_checks.step, engine_checks.hf)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")

# ------------------------------------------------------------------------------------------ the checks themselves


@pytest.fixture(scope="module")
def alone():
    """The environment of a single rank; as many threads afterwards as before."""
    threads, where = torch.get_num_threads(), {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**where, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def carry_out(check, model: Path, scratch: Path) -> dict:
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
        probe.close()
        found = processes.carry_out(check, "tiny", model, scratch)
    if torch.distributed.is_initialized():  # the training worker stays in its group
        torch.distributed.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def tiny(alone, tmp_path_factory):
    """The tiny policy's folder, and what building it came to."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    return folder, carry_out(actor_checks.build, folder, folder.parent)


@needs_no_gpu
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.__name__, marks=() if check in FAST else pytest.mark.slow)
        for check in (*test_checks.ON_ONE, *test_checks.ON_ALL, sam2_checks.sam2)
    ],
)
def test_each_check_passes_on_the_cpu(tiny, check, tmp_path):
    folder, found = tiny
    found = found if check is actor_checks.build else carry_out(check, folder, tmp_path)
    assert found["state"] == (SKIPPED if check is engine_checks.vllm and found["why"] else OK), found["trace"]
    assert found["state"] == SKIPPED or all(value == value for value in found["numbers"].values())


@needs_no_gpu
def test_packed_replies_at_wrong_positions_are_found(tiny, tmp_path, monkeypatch):
    from verl.models import shared_prompts

    collate = shared_prompts.collate

    def misplaced(prompts, responses, mask, *, model):
        inputs = collate(prompts, responses, mask, model=model)
        inputs["position_ids"] = inputs["position_ids"] * 0  # every token where the first one is
        return inputs

    monkeypatch.setattr(shared_prompts, "collate", misplaced)
    found = carry_out(actor_checks.packed, tiny[0], tmp_path)
    assert found["state"] == FAILED
    assert found["why"].startswith("CheckError: float32: packed and plain log-probabilities differ by up to")


@needs_no_gpu
def test_an_engine_with_old_weights_is_found(tiny, tmp_path, monkeypatch):
    from verl.engines.hf import HFEngine

    monkeypatch.setattr(HFEngine, "sync_weights", lambda self, weights: [name for name, _ in weights] and None)
    found = carry_out(engine_checks.hf, tiny[0], tmp_path)
    assert found["state"] == FAILED
    assert "engine and actor differ by" in found["why"]


# ------------------------------------------------------------------------------------------ how they are run


def raises(place):
    raise ValueError(f"rank {place.rank} of {place.world_size}\nwill not")


def dies(place):
    print("its last words", flush=True)
    os._exit(3)


def waits(place):
    """Rank 0 waits for ever for rank 1, which does not come."""
    if place.rank == 1:
        raise ValueError("rank 1 will not")
    time.sleep(600)


def hangs(place):
    time.sleep(600)


def leaves_out(place):
    place.edge("here")
    return "no reason"


@pytest.mark.slow
def test_a_failure_of_one_check_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 1.0)
    with Processes(tmp_path, cpu=True, ranks=2, limit_s=1000, total_s=3000) as running:
        found = {
            check: running.run(check, size="tiny", model=tmp_path, on_all=check is waits)
            for check in (raises, dies, waits, leaves_out)
        }
    assert [outcome.state for outcome in found.values()] == [FAILED, FAILED, FAILED, SKIPPED]
    assert found[raises].why == "ValueError: rank 0 of 1", found[raises].trace
    assert "will not" in found[raises].trace
    assert found[dies].why == "the process ended with exit status 3", found[dies].trace
    assert "its last words" in found[dies].trace
    assert (found[waits].ranks, found[waits].why) == (2, "ValueError: rank 1 will not"), found[waits].trace
    assert (found[leaves_out].why, [edge["at"] for edge in found[leaves_out].edges]) == ("no reason", ["here"])
    assert not list(tmp_path.glob("*_tiny"))


@pytest.mark.slow
def test_a_process_that_dies_at_its_start_is_replaced(tmp_path):
    with Processes(tmp_path, cpu=True, ranks=1, limit_s=1000, total_s=3000) as running:
        running._start(1)
        os.kill(running._spares[0]._process.pid, signal.SIGKILL)
        outcome = running.run(raises, size="tiny", model=tmp_path)
    assert outcome.why == "ValueError: rank 0 of 1", outcome.trace


def test_processes_that_never_come_up_are_a_failure_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_serve", os.getppid)  # takes no arguments: each process ends with a TypeError
    with Processes(tmp_path, cpu=True, ranks=1, limit_s=1000, total_s=3000) as running:
        outcome = running.run(raises, size="tiny", model=tmp_path)
    assert (outcome.state, outcome.why) == (FAILED, "did not come up: the process ended with exit status 1")


def test_a_check_that_hangs_is_ended(tmp_path):
    with Processes(tmp_path, cpu=True, ranks=1, limit_s=1, total_s=3000) as running:
        outcome = running.run(hangs, size="tiny", model=tmp_path)
    assert (outcome.state, outcome.why) == (FAILED, "did not finish within 1 s")


def test_when_all_time_is_used_up_the_rest_has_failed(tmp_path):
    outcome = Processes(tmp_path, cpu=True, ranks=1, limit_s=5, total_s=0).run(raises, size="tiny", model=tmp_path)
    assert (outcome.state, outcome.why) == (FAILED, "not begun: the 0 s for all are over")


def pytest_on_checks(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", Path(__file__).parent, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@needs_no_gpu
@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    done = pytest_on_checks()
    assert done.returncode == 0, done.stdout
    assert "there is no CUDA device here" in done.stdout
    assert "--gpu-device cpu" in done.stdout


@pytest.mark.slow
def test_two_ranks_by_the_real_command(tmp_path):
    found = tmp_path / "found.json"
    arguments = ["--gpu-device", "cpu", "-k", "build or step", "--gpu-limit", "1000", "--gpu-total", "3000"]
    done = pytest_on_checks(*arguments, "--gpu-json", str(found), f"--basetemp={tmp_path / 'work'}")
    assert done.returncode == 0, done.stdout
    build, step = json.loads(found.read_text())
    assert (build["check"], build["ranks"], build["state"]) == ("build", 1, OK)
    assert (step["check"], step["ranks"], step["state"]) == ("step", 2, OK)
    # lengths of a rank's 8 replies go from 12 down to 1: 12, 10, 8, 7, 5, 4, 2, 1
    assert step["numbers"]["tokens"] == 2 * (12 + 10 + 8 + 7 + 5 + 4 + 2 + 1)
    assert step["numbers"]["loss gained"] > 0
    assert HEADER in done.stdout
    assert "two updates" in done.stdout
    assert "2 ok, 0 skipped, 0 FAILED in" in done.stdout


def test_rows_of_the_table_line_up():
    rows = [
        Outcome("checkpoints", "tiny", 2, OK, seconds=12.34, peak_gib=1.5, numbers={"kl": 0.25}),
        Outcome("vllm", "mid", 1, SKIPPED, "vllm is not installed"),
        Outcome("step", "mid", 1, FAILED, "OutOfMemoryError: 2 GiB", seconds=3, peak_gib=23),
    ]
    assert [HEADER, *map(row, rows)] == [
        "check        size  ranks  seconds  peak GiB  result",
        "checkpoints  tiny      2     12.3      1.50  ok: kl 0.2500",
        "vllm         mid       1        –         –  skipped (vllm is not installed)",
        "step         mid       1      3.0     23.00  FAILED: OutOfMemoryError: 2 GiB",
    ]
