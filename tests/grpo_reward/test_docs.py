"""The page on rewards keeps its word: its example runs, its table names every switch and term."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from grpo_reward.options import TERMS, Preset
from veason.answer import Rules
from verl.config import ConfigError, RewardConfig, load
from verl.utils import plugins
from verl.workers.reward import check_reward

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_the_reward_in_ten_lines_runs(prompt, say, tmp_path, monkeypatch):
    [example] = re.findall(r"```python\n# my_reward\.py\n(.*?)```", PAGE, re.DOTALL)
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 10
    (tmp_path / "my_reward.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    reward = plugins.find("my_reward:Brief", group="verl.rewards")(RewardConfig(options={"longest": "10"}))
    rewards = reward.score(prompt, [say(12, "[[1, 2, 3, 4]]"), "no"])
    assert [(r.total, r.problem) for r in rewards] == [(pytest.approx(1.9), None), (0.0, "no_answer")]
    assert rewards[0].parts == {"usable": 1.0, "brief": pytest.approx(0.9)}
    named = RewardConfig(compute_score="my_reward:Brief", options={"longest": "10"})
    check_reward(named)
    with pytest.raises(ConfigError, match=r"it needs worker\.reward\.options\.longest"):
        check_reward(replace(named, options={}))
    with pytest.raises(ConfigError, match=r"worker\.reward\.options\.longes is no option of it \(did you mean longest"):
        check_reward(replace(named, options={"longes": "10"}))


def test_a_reward_with_a_record_of_its_own_is_configured_by_its_keys(tmp_path, monkeypatch):
    [example] = re.findall(r"```python\n(from dataclasses.*?)```", PAGE, re.DOTALL)
    (tmp_path / "brief.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    reward = load(["worker.reward.compute_score=brief:build", "worker.reward.longest=10"]).worker.reward
    assert (reward.longest, reward.share) == (10, 0.5)
    with pytest.raises(
        ConfigError, match=r"unknown key 'worker\.reward\.long'; the nearest is 'worker\.reward\.longest'"
    ):
        load(["worker.reward.compute_score=brief:build", "worker.reward.long=10"])


def test_every_term_and_switch_is_named():
    names = {field.name for record in (Preset, Rules) for field in fields(record)} - {"rules"}
    assert not {name for name in (*names, *TERMS) if f"`{name}`" not in PAGE}
