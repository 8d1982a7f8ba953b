"""Without vLLM, asking for it is one line that says how to get it; and how the guard speaks of stale weights."""

import math

import pytest

from demo.policy import write_tiny_policy
from verl import config as configuration
from verl.trainer.main import main
from verl.trainer.metrics import describe_stale_weights


def test_vllm_is_missed_before_ray_is_started(tmp_path, monkeypatch):
    write_tiny_policy(tmp_path / "policy", seed=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("verl.trainer.ray_trainer.RayTrainer", None)
    with pytest.raises(configuration.ConfigError, match=r"`make setup-vllm`.*`pip install -e '\.\[vllm\]'`"):
        main(
            [
                "data.name=toy_task:open_squares",
                "data.train_files=unused",
                "worker.reward.compute_score=toy_task:Letters",
                f"worker.actor.model.model_path={tmp_path / 'policy'}",
                f"trainer.save_checkpoint_path={tmp_path / 'run'}",
                "worker.rollout.name=vllm",
            ]
        )


def test_the_guard_names_the_most_distant_of_what_any_rank_found():
    assert describe_stale_weights([{"a": 0.25, "b": 1e-3}, {"b": 0.5, "c": math.inf}]) == (
        "Stale in the engine, with their relative distance from what was sent: c (inf), b (0.5), a (0.25)"
    )
    many = {f"w{number}": float(number) for number in range(1, 11)}
    assert describe_stale_weights([many]).endswith("w4 (4), w3 (3) and 2 more")


def test_without_stale_weights_the_guard_looks_elsewhere():
    assert "so its inputs or its arithmetic differ" in describe_stale_weights([{}, {}])
