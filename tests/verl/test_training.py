"""The loop on real Ray workers: what it writes, and what it survives."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.policy import write_tiny_policy
from verl import config as configuration
from verl.config import ConfigError
from verl.ray import WorkerLost
from verl.trainer import RunStopped, run_folder
from verl.trainer.main import main
from verl.workers.reward import RewardError

HERE = str(Path(__file__).parent)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_tiny_policy(folder, seed=0)
    return folder


def settings(policy, folder, *more):
    return [
        "data.name=toy_task:open_squares",
        "data.train_files=unused",
        "data.rollout_batch_size=4",
        "data.max_response_length=8",
        f"worker.actor.model.model_path={policy}",
        "worker.actor.global_batch_size=4",
        "worker.actor.micro_batch_size_per_device_for_update=8",
        "worker.actor.micro_batch_size_per_device_for_experience=8",
        "worker.actor.model.enable_gradient_checkpointing=false",
        "worker.actor.optim.lr=1e-3",
        "worker.rollout.n=3",
        "worker.reward.compute_score=toy_task:Letters",
        "worker.reward.num_cpus_per_worker=0.1",
        "trainer.n_gpus_per_node=2",
        "trainer.total_episodes=5",
        "trainer.max_steps=4",
        "trainer.save_freq=2",
        f"trainer.save_checkpoint_path={folder}",
        *more,
    ]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(cluster, policy, tmp_path_factory):
    """An uninterrupted run of four steps, to compare with."""
    folder = tmp_path_factory.mktemp("whole")
    main(settings(policy, folder, "trainer.val_freq=2", "data.val_limit=4", "data.val_batch_size=3"))
    return folder


@pytest.fixture(scope="module")
def plain(cluster, policy, tmp_path_factory):
    """The same without validation."""
    folder = tmp_path_factory.mktemp("plain")
    main(settings(policy, folder))
    return folder


def test_a_run_writes_what_it_did(whole):
    steps = lines(whole)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert line["reward/total"] == line["reward/letters"]
        assert line["length/response_max"] <= 8
        assert line["engine/gap_max"] < 1e-4
        assert line["actor/skipped"] == 0
        assert line["actor/clip_fraction"] == 0  # one update per batch: the ratio is 1
    assert steps[0]["actor/kl"] < 1e-6 < steps[1]["actor/kl"]
    assert ["val/reward/total" in line for line in steps] == [False, True, False, True]
    assert sorted(path.name for path in whole.glob("step_*")) == ["step_000002", "step_000004"]
    text = (whole / "rollouts" / "step_000001.txt").read_text()
    assert text.startswith("== 0/")
    assert configuration.load([f"config={whole / 'config.yaml'}"]).worker.rollout.n == 3
    assert {"generate", "reference", "reward", "update", "sync", "memory_gib"} <= set(
        json.loads((whole / "timings.jsonl").read_text().splitlines()[0])
    )


@pytest.mark.slow
def test_two_updates_per_batch(cluster, policy, tmp_path):
    """Off-policy from the second update on: old log-probabilities get a pass of their own, ratios leave 1."""
    cosine = ["worker.actor.global_batch_size=2", "worker.actor.optim.lr_scheduler=cosine"]
    main(settings(policy, tmp_path, *cosine, "trainer.max_steps=2"))
    first, second = lines(tmp_path)
    shares = [0.5 * (1 + math.cos(math.pi * share)) for share in (1 / 4, 3 / 4)]  # the second and the fourth update
    assert [first["actor/lr"], second["actor/lr"]] == pytest.approx([1e-3 * share for share in shares])
    assert first["engine/gap_max"] < 1e-4
    assert first["actor/policy_loss"] != 0
    assert "logprobs" in json.loads((tmp_path / "timings.jsonl").read_text().splitlines()[0])


@pytest.mark.slow
def test_lora_trains_the_adapter_alone(cluster, policy, tmp_path):
    main(settings(policy, tmp_path, "worker.actor.model.lora.rank=4", "trainer.max_steps=2"))
    assert [line["actor/kl"] > 1e-9 for line in lines(tmp_path)] == [False, True]
    assert all(line["engine/gap_max"] < 1e-4 for line in lines(tmp_path))  # folded on the fly


@pytest.mark.slow
def test_validation_changes_nothing_that_is_trained(whole, plain):
    without = [{k: v for k, v in line.items() if not k.startswith("val/")} for line in lines(whole)]
    assert without == lines(plain)


@pytest.mark.slow
def test_killed_in_mid_step_and_resumed_equals_uninterrupted(policy, plain, tmp_path):
    """SIGKILL after the third line is out, that is past the checkpoint of step 2 and somewhere in step 4."""
    arguments = [sys.executable, "-m", "verl.trainer.main", *settings(policy, tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    path = tmp_path / "metrics.jsonl"
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(lines(tmp_path)) in (3, 4)
    main(settings(policy, tmp_path))
    assert lines(tmp_path) == lines(plain)
    assert path.read_bytes() == (plain / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_saved_on_two_ranks_resumed_on_one(cluster, policy, plain, tmp_path):
    main(settings(policy, tmp_path, "trainer.max_steps=2"))
    main(settings(policy, tmp_path, "trainer.n_gpus_per_node=1"))
    for ours, theirs in zip(lines(tmp_path), lines(plain), strict=True):
        for name in ("reward/total", "actor/loss", "actor/kl", "actor/grad_norm", "length/response"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), (ours["step"], name)


@pytest.fixture
def mortal(policy, tmp_path):
    """A copy of the policy whose engine dies once."""
    shutil.copytree(policy, tmp_path / "mortal")
    return tmp_path / "mortal"


@pytest.mark.slow
def test_a_lost_rank_restarts_the_run_from_its_last_checkpoint(cluster, mortal, plain, tmp_path, capsys):
    main(settings(mortal, tmp_path / "run", "worker.rollout.name=toy_task:MortalEngine"))
    assert (mortal / "died").exists()
    assert "restart 1 of 3: rank" in capsys.readouterr().err
    assert lines(tmp_path / "run") == lines(plain)


@pytest.mark.slow
def test_a_rank_that_hangs_restarts_the_run_as_one_that_died(cluster, mortal, plain, tmp_path, capsys):
    took_s = (plain / "metrics.jsonl").stat().st_mtime - (plain / ".lock").stat().st_mtime  # how busy the machine is
    limit = 30 + round(took_s)
    more = ["worker.rollout.name=toy_task:StoppedEngine", f"trainer.stuck_after={limit}"]
    main(settings(mortal, tmp_path / "run", *more))
    assert (mortal / "stopped").exists()
    told = capsys.readouterr().err
    assert "restart 1 of 3: rank" in told
    assert f"had not finished after {limit} s (trainer.stuck_after)" in told
    assert lines(tmp_path / "run") == lines(plain)
    assert [path.name for path in (tmp_path / "run").glob("config*.yaml")] == ["config.yaml"]


@pytest.mark.slow
def test_without_restarts_a_lost_rank_is_the_end(cluster, mortal, tmp_path):
    more = ["worker.rollout.name=toy_task:MortalEngine", "trainer.max_restarts=0"]
    with pytest.raises(WorkerLost, match="in generate"):
        main(settings(mortal, tmp_path / "run", *more))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_reward_worker_that_dies_or_hangs_is_replaced(cluster, policy, plain, tmp_path, fault):
    options = [
        f"worker.reward.options.{k}={v}" for k, v in (("fault", fault), ("target", 3), ("marker", tmp_path / "once"))
    ]
    main(settings(policy, tmp_path / "run", *options, "worker.reward.timeout_s=20"))
    assert (tmp_path / "once").exists()
    assert lines(tmp_path / "run") == lines(plain)
    times = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert sum(line["reward/retries"] for line in times) == 1
    assert all(0 < line["reward/seconds_per_prompt"] <= line["reward/seconds_longest"] for line in times)


def test_a_reward_that_raises_stops_the_run_and_names_the_prompt(cluster, policy, tmp_path):
    options = ["worker.reward.options.fault=raise", "worker.reward.options.target=3"]
    with pytest.raises(RewardError, match="0/3") as error:
        main(settings(policy, tmp_path, *options))
    assert "the tracker tripped" in str(error.value)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_too_many_stop_the_run(cluster, policy, plain, tmp_path):
    once = ["worker.reward.options.fault=nan", "worker.reward.options.target=3"]
    main(settings(policy, tmp_path / "once", *once, f"worker.reward.options.marker={tmp_path / 'once_marker'}"))
    steps = lines(tmp_path / "once")
    assert [line["actor/skipped"] for line in steps].count(1.0) == 1
    assert len(steps) == 4
    with pytest.raises(RuntimeError, match="1 steps in a row"):
        main(settings(policy, tmp_path / "often", *once, "trainer.max_bad_steps=0"))


@pytest.mark.slow
def test_groups_without_spread_can_be_left_out(cluster, policy, tmp_path):
    """With greedy-like sampling all replies of a group are equal: nothing is left to train on, and nothing breaks."""
    more = ["worker.rollout.temperature=1e-4", "algorithm.drop_equal_groups=true", "trainer.max_steps=1"]
    main(settings(policy, tmp_path, *more, "worker.rollout.logprob_tolerance=1e9"))
    (line,) = lines(tmp_path)
    assert (line["group/equal"], line["group/dropped"], line["actor/tokens"]) == (1.0, 1.0, 0.0)
    assert (line["actor/empty"], line["actor/skipped"]) == (1.0, 0.0)
    assert line["engine/gap_max"] > 0  # of the replies, though none was learned from


@pytest.mark.slow
def test_steps_with_nothing_to_learn_from_are_logged_and_too_many_stop_the_run(cluster, policy, tmp_path):
    more = ["worker.rollout.temperature=1e-4", "algorithm.drop_equal_groups=true", "trainer.max_empty_steps=1"]
    with pytest.raises(RunStopped, match=r"2 steps in a row had nothing to learn from \(trainer.max_empty_steps\)"):
        main(settings(policy, tmp_path, *more, "worker.rollout.logprob_tolerance=1e9", "trainer.save_freq=1"))
    assert [line["actor/empty"] for line in lines(tmp_path)] == [1.0, 1.0]
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_000001"]


@pytest.mark.slow
def test_an_engine_is_not_taken_to_agree_where_nothing_was_looked_at(cluster, policy, tmp_path):
    more = ["worker.rollout.temperature=1e-4", "algorithm.drop_equal_groups=true", "trainer.max_steps=1"]
    with pytest.raises(RunStopped, match="from the actor's on average"):
        main(settings(policy, tmp_path, *more, "worker.rollout.name=toy_task:LyingEngine"))


@pytest.mark.slow
def test_a_resumed_run_takes_what_may_change_and_refuses_the_rest(cluster, policy, tmp_path, capsys):
    run = tmp_path / "run"
    main(settings(policy, run, "trainer.max_steps=2"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change in ("data.seed=7", "worker.rollout.n=2", "worker.actor.optim.lr=5e-4"):
        with pytest.raises(ConfigError, match=f"was trained with other settings: {change.partition('=')[0]} was"):
            main(settings(policy, run, change))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    more = ["trainer.save_freq=1", "trainer.keep_last=1", "trainer.rollouts_kept=1", "trainer.val_freq=4"]
    lr = ["worker.actor.optim.lr=5e-4", "trainer.accept_changes=[worker.actor.optim.lr]"]
    main(settings(policy, run, *more, *lr))
    told = capsys.readouterr().err
    assert "resumed with a change: worker.actor.optim.lr was 0.001, is 0.0005\n" in told
    assert "resumed with a change: trainer.save_freq was 2, is 1\n" in told
    assert [line["actor/lr"] for line in lines(run)] == [1e-3, 1e-3, 5e-4, 5e-4]
    assert ["val/reward/total" in line for line in lines(run)] == [False, False, False, True]
    assert [path.name for path in run.glob("step_*")] == ["step_000004"]
    assert [path.read_text().count("== ") for path in sorted((run / "rollouts").iterdir())] == [4, 4, 1, 1]
    rates = [
        configuration.load([f"config={run / name}"]).worker.actor.optim.lr
        for name in ("config_000.yaml", "config.yaml")
    ]
    assert rates == [1e-3, 5e-4]
    main(settings(policy, run, *more, *lr))
    assert "nothing is left to do: 4 steps are done of 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_another_ones_checkpoint_can_be_requeued(cluster, policy, plain, tmp_path, capsys):
    start = [f"trainer.resume={plain / 'step_000002'}", "trainer.save_freq=1"]
    main(settings(policy, tmp_path, *start, "trainer.max_steps=3"))
    main(settings(policy, tmp_path, *start))
    assert f"resuming after step 3 from {tmp_path / 'step_000003'}" in capsys.readouterr().err
    assert lines(tmp_path) == lines(plain)[2:]


@pytest.mark.slow
def test_a_folder_that_another_run_writes_to_is_refused_in_one_line(policy, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "verl.trainer.main", *settings(policy, tmp_path)]
    with run_folder.locked(tmp_path):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: another run is writing here; wait for it or end it, or give another "
        "trainer.save_checkpoint_path\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_sigterm_ends_the_workers_too(policy, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, "-m", "verl.trainer.main", *settings(policy, tmp_path, "trainer.max_steps=500")]
    arguments += ["trainer.total_episodes=500"]
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not ((tmp_path / "metrics.jsonl").exists() and lines(tmp_path)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = descendants(process.pid)
    assert sum("ray::_Host" in title for title in children.values()) == 2
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert told.endswith("stopped by SIGTERM; the same command goes on from the last checkpoint\n")
    assert "SIGTERM received" not in told  # the head of Ray's stack
    deadline = time.monotonic() + 300
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, {pid: children[pid] for pid in left}
        time.sleep(0.1)


def descendants(pid):
    """Command line of each process below this one."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: titles.get(child, "") for child in below - {pid}}


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_intact(cluster, policy, tmp_path):
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(RuntimeError, match="step_000002") as error:
            main(settings(policy, folder, "trainer.save_freq=1"))
        assert "could not be written" in str(error.value)
        assert sorted(path.name for path in folder.glob("step_*")) == ["step_000001"]
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("tracker", ["grabcut", pytest.param("sam2", marks=pytest.mark.slow)])
def test_three_steps_on_the_synthetic_world(cluster, world, tmp_path, tracker):
    """The ReVOS task, the four-term reward and its tracker, as the embedded default is configured."""
    more = []
    if tracker == "sam2":
        from veason.trackers.sam2_tiny import tiny_sam2

        tiny = tiny_sam2(tmp_path / "sam2", 0)
        more = [f"worker.reward.sam2_config={tiny.config}", f"worker.reward.sam2_checkpoint={tiny.checkpoint}"]
    main(
        [
            f"config={ROOT / 'training_scripts' / 'grpo_tiny.yaml'}",
            f"data.train_files={world}",
            f"worker.actor.model.model_path={world / 'tiny_policy'}",
            f"worker.reward.tracker={tracker}",
            "worker.reward.num_cpus_per_worker=0.1",
            "data.rollout_batch_size=4",
            "data.max_response_length=32",
            "worker.actor.global_batch_size=4",
            "worker.rollout.n=4",
            "trainer.max_steps=3",
            f"trainer.save_checkpoint_path={tmp_path / 'run'}",
            *more,
        ]
    )
    steps = lines(tmp_path / "run")
    assert len(steps) == 3
    for line in steps:
        assert {"reward/format", "reward/keyframe", "reward/spatial", "reward/consistency"} <= line.keys()
        problems = sum(value for name, value in line.items() if name.startswith("problem/"))
        assert problems + line["reward/without_problem"] == pytest.approx(1)
