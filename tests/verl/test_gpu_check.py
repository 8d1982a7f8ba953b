"""The GPU check, on the CPU: every check alone in this process, and the way it is run on two ranks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from verl.gpu_check import __main__ as command
from verl.gpu_check import child, report, runner
from verl.gpu_check.plan import BUILD, CHECKS, FAILED, OK, SKIPPED, Check, Outcome, chosen
from verl.utils import plugins

HERE = str(Path(__file__).parent)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@needs_no_gpu
def test_without_a_gpu_it_says_so(capsys):
    assert command.main([]) == 2
    told = capsys.readouterr().err
    assert "there is no CUDA device here" in told
    assert "--device cpu" in told


def test_the_list_names_every_check_and_each_is_there(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [check.name for check in CHECKS]
    assert all(callable(plugins.find(check.run, group="")) for check in CHECKS)


def test_what_is_chosen_comes_after_the_policy_it_needs():
    assert [check.name for check in chosen(["offload", "step"])] == ["build", "step", "offload"]
    assert [check.name for check in chosen(["sam2"])] == ["sam2"]
    assert chosen([]) == list(CHECKS)


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


def carry_out(check: Check, model: Path, scratch: Path) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", str(runner.free_port()))
        found = child.carry_out({"run": check.run, "size": "tiny", "model": str(model), "scratch": str(scratch)})
    if torch.distributed.is_initialized():  # the training worker stays in its group
        torch.distributed.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def built(alone, tmp_path_factory):
    """The tiny policy's folder, and what building it came to."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    return folder, carry_out(BUILD, folder, folder.parent)


@needs_no_gpu
@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_each_check_passes_on_the_cpu(built, check, tmp_path):
    folder, found = built
    found = found if check == BUILD else carry_out(check, folder, tmp_path)
    assert found["state"] == (SKIPPED if check.name == "vllm" and found["why"] else OK), found["trace"]
    assert found["state"] == SKIPPED or all(value == value for value in found["numbers"].values())


@needs_no_gpu
def test_packed_replies_at_wrong_positions_are_found(built, tmp_path, monkeypatch):
    from verl.models import packed

    collate = packed.collate

    def misplaced(prompts, responses, mask, *, model):
        inputs = collate(prompts, responses, mask, model=model)
        inputs["position_ids"] = inputs["position_ids"] * 0  # every token where the first one is
        return inputs

    monkeypatch.setattr(packed, "collate", misplaced)
    found = carry_out(next(check for check in CHECKS if check.name == "packed"), built[0], tmp_path)
    assert found["state"] == FAILED
    assert found["why"].startswith("CheckError: float32: packed and plain log-probabilities differ by up to")


@needs_no_gpu
def test_an_engine_with_old_weights_is_found(built, tmp_path, monkeypatch):
    from verl.engines.hf import HFEngine

    monkeypatch.setattr(HFEngine, "sync_weights", lambda self, weights: [name for name, _ in weights] and None)
    found = carry_out(next(check for check in CHECKS if check.name == "rollouts"), built[0], tmp_path)
    assert found["state"] == FAILED
    assert "engine and actor differ by" in found["why"]


# ------------------------------------------------------------------------------------------ how they are run


def raises(place):
    raise ValueError(f"rank {place.rank} of {place.world_size}\nwill not")


def dies(place):
    print("its last words")
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


JOBS = [
    Check("raises", "", "test_gpu_check:raises", needs_policy=False),
    Check("dies", "", "test_gpu_check:dies", needs_policy=False),
    Check("waits", "", "test_gpu_check:waits", on_all=True, needs_policy=False),
    Check("leaves_out", "", "test_gpu_check:leaves_out", needs_policy=False),
    Check("homeless", "", "test_gpu_check:leaves_out"),
]


@pytest.mark.slow
def test_a_failure_of_one_check_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(runner, "GRACE_S", 1.0)
    jobs = [(check, "tiny") for check in JOBS]
    with runner.Runner(jobs, cpu=True, ranks=2, work=tmp_path, limit_s=1000, total_s=3000) as running:
        found = {outcome.check: outcome for outcome in running.outcomes()}
    assert [found[check.name].state for check in JOBS] == [FAILED] * 3 + [SKIPPED] * 2
    assert found["raises"].why == "ValueError: rank 0 of 1"
    assert "will not" in found["raises"].trace
    assert found["dies"].why == "the process ended with exit status 3"
    assert "its last words" in found["dies"].trace
    assert (found["waits"].ranks, found["waits"].why) == (2, "ValueError: rank 1 will not")
    assert (found["leaves_out"].why, [edge["at"] for edge in found["leaves_out"].edges]) == ("no reason", ["here"])
    assert found["homeless"].why == "there is no policy, since build failed"
    assert not list(tmp_path.glob("*_tiny"))


@pytest.mark.slow
def test_a_check_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    jobs = [(Check("hangs", "", "test_gpu_check:hangs", needs_policy=False), "tiny")]
    with runner.Runner(jobs, cpu=True, ranks=1, work=tmp_path, limit_s=1, total_s=3000) as running:
        (outcome,) = running.outcomes()
    assert (outcome.state, outcome.why) == (FAILED, "did not finish within 1 s")


def test_when_all_time_is_used_up_the_rest_has_failed(tmp_path):
    running = runner.Runner([(JOBS[0], "tiny")], cpu=True, ranks=1, work=tmp_path, limit_s=5, total_s=0)
    (outcome,) = running.outcomes()
    assert (outcome.state, outcome.why) == (FAILED, "not begun: the 0 s for all are over")


@pytest.mark.slow
def test_two_ranks_by_the_real_command(tmp_path, capsys):
    arguments = ["--device", "cpu", "--only", "step", "--json", str(tmp_path / "found.json"), "--work", str(tmp_path)]
    assert command.main([*arguments, "--limit", "1000", "--total", "3000"]) == 0
    build, step = json.loads((tmp_path / "found.json").read_text())
    assert (build["check"], build["ranks"], build["state"]) == ("build", 1, OK)
    assert (step["check"], step["ranks"], step["state"]) == ("step", 2, OK)
    # lengths of a rank's 8 replies go from 12 down to 1: 12, 10, 8, 7, 5, 4, 2, 1
    assert step["numbers"]["tokens"] == 2 * (12 + 10 + 8 + 7 + 5 + 4 + 2 + 1)
    assert step["numbers"]["loss gained"] > 0
    assert os.listdir(tmp_path) == ["found.json"]
    printed = capsys.readouterr().out
    assert printed.startswith(report.HEADER)
    assert "two updates" in printed
    assert "2 ok, 0 skipped, 0 FAILED in" in printed


def test_rows_of_the_table_line_up():
    rows = [
        Outcome("checkpoint", "tiny", 2, OK, seconds=12.34, peak_gib=1.5, numbers={"kl": 0.25}),
        Outcome("vllm", "mid", 1, SKIPPED, "vllm is not installed"),
        Outcome("step", "mid", 1, FAILED, "OutOfMemoryError: 2 GiB", seconds=3, peak_gib=23),
    ]
    assert [report.HEADER, *map(report.row, rows)] == [
        "check       size  ranks  seconds  peak GiB  result",
        "checkpoint  tiny      2     12.3      1.50  ok: kl 0.2500",
        "vllm        mid       1        –         –  skipped (vllm is not installed)",
        "step        mid       1      3.0     23.00  FAILED: OutOfMemoryError: 2 GiB",
    ]
