"""The order of prompts and the step's metrics, by hand."""

import pytest

from verl.protocol import Reward, Rollout
from verl.trainer.metrics import length_metrics, readable, reward_metrics
from verl.trainer.prompts import Schedule, batches


class Numbers:
    """A data set whose prompts are (index, epoch)."""

    def __init__(self, length):
        self.length, self.asked = length, []

    def __len__(self):
        return self.length

    def get(self, index, *, epoch):
        self.asked.append((index, epoch))
        return (index, epoch)


def test_an_epoch_sees_every_prompt_once_but_for_the_rest():
    schedule = Schedule(length=10, batch_size=3, seed=1)
    assert schedule.steps_per_epoch == 3
    first = [i for step in range(3) for i in schedule.indices(step)]
    second = [i for step in range(3, 6) for i in schedule.indices(step)]
    assert len(set(first)) == len(set(second)) == 9
    assert first != second
    assert Schedule(length=10, batch_size=3, seed=1).indices(4) == schedule.indices(4)
    assert Schedule(length=10, batch_size=3, seed=2).indices(0) != schedule.indices(0)
    assert Schedule(length=6, batch_size=3, seed=0, shuffle=False).indices(1) == [3, 4, 5]


def test_too_few_prompts_are_named():
    with pytest.raises(ValueError, match=r"2 prompts are fewer than data\.rollout_batch_size 3"):
        Schedule(length=2, batch_size=3, seed=0).indices(0)


def test_a_resumed_run_asks_only_for_its_own_prompts():
    schedule, dataset = Schedule(length=6, batch_size=2, seed=0, shuffle=False), Numbers(6)
    got = list(batches(dataset, schedule, range(4, 6)))
    assert got == [[(2, 1), (3, 1)], [(4, 1), (5, 1)]]
    assert sorted(dataset.asked) == [(2, 1), (3, 1), (4, 1), (5, 1)]
    assert list(batches(dataset, schedule, range(3, 3))) == []


def test_reward_metrics_by_hand():
    groups = [
        [Reward(1.0, {"format": 1.0, "spatial": 0.0}), Reward(0.0, {"format": 0.0, "spatial": 0.0}, "no_answer")],
        [Reward(0.5, {"format": 0.5, "spatial": 0.0}), Reward(0.5, {"format": 0.5, "spatial": 0.0}, "no_answer")],
    ]
    assert reward_metrics(groups) == {
        "reward/total": 0.5,
        "reward/format": 0.5,
        "reward/spatial": 0.0,
        "reward/without_problem": 0.5,
        "problem/no_answer": 0.5,
        "group/std": 0.25,  # 0.5 and 0
        "group/equal": 0.5,
    }


def test_lengths_and_the_text_for_a_person():
    rollouts = [Rollout("a", 0, "hi", 10, 2, True), Rollout("a", 1, "there", 10, 4, False)]
    assert length_metrics(rollouts) == {
        "length/prompt": 10,
        "length/response": 3,
        "length/response_max": 4,
        "length/finished": 0.5,
    }
    text = readable(rollouts[1], Reward(0.25, {"format": 0.25}, "no_answer"))
    assert text == "== a #1: 0.250 (format 0.250); no_answer; 4 tokens, cut off\nthere\n"
