"""GRPO with vLLM rollouts, by the command: one rank, two engines beside each other, one engine over two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from actor_cases import write_policy

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    "PYTHONPATH": os.pathsep.join([str(TESTS / "verl"), str(Path(__file__).parent)]),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def train(policy, folder, *more, ranks):
    settings = [
        "data.name=toy_task:open_squares",
        "data.train_files=unused",
        "data.rollout_batch_size=4",
        "data.max_prompt_length=200",
        "data.max_response_length=8",
        f"worker.actor.model.model_path={policy}",
        "worker.actor.global_batch_size=4",
        "worker.actor.micro_batch_size_per_device_for_update=8",
        "worker.actor.micro_batch_size_per_device_for_experience=8",
        "worker.actor.model.enable_gradient_checkpointing=false",
        "worker.actor.optim.lr=1e-2",
        "worker.rollout.name=vllm",
        "worker.rollout.n=3",
        "worker.rollout.logprob_tolerance=1e-4",
        "worker.reward.compute_score=toy_task:Letters",
        "worker.reward.num_cpus_per_worker=0.1",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.total_episodes=5",
        "trainer.max_steps=3",
        "trainer.val_freq=3",
        "data.val_limit=1",
        "trainer.max_restarts=0",
        f"trainer.save_checkpoint_path={folder}",
        *more,
    ]
    command = [sys.executable, "-m", "verl.trainer.main", *settings]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800, cwd=TESTS.parent)


def steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("ranks", "size", "tied", "lora"), [(1, 1, True, 0), (2, 1, False, 4), (2, 2, True, 4)], ids=["1", "2", "2-tp2"]
)
def test_three_steps_stay_within_the_tolerance(tmp_path, ranks, size, tied, lora):
    policy, folder = write_policy(tmp_path / "policy", tied=tied), tmp_path / "run"
    more = [f"worker.rollout.tensor_parallel_size={size}", f"worker.actor.model.lora.rank={lora}"]
    done = train(policy, folder, *more, ranks=ranks)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = steps(folder)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert all(line["engine/gap_max"] < 1e-4 for line in found)
    assert all(line["actor/grad_norm"] > 0 for line in found)


def test_a_stale_tensor_stops_the_run_and_is_named(tmp_path):
    """The engine whose embeddings arrive and whose head does not: what vLLM alone does on a CPU."""
    policy = write_policy(tmp_path / "policy", tied=True)
    done = train(policy, tmp_path / "run", "worker.rollout.name=forgetful:ForgetfulEngine", ranks=1)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Stale in the engine, with their relative distance from what was sent: lm_head.weight (" in said
    assert "worker.rollout.logprob_tolerance is 0.0001" in said
    assert [line["step"] for line in steps(tmp_path / "run")] == [1]
