"""The one rule by which a run goes on, the same for inference, GRPO, SFT and the chains of thought.

With the settings and inputs of before it goes on. Another value of a setting that decides results, or other contents of
an input, is refused by name, with what was and what is, and the record stays. What may change takes effect, and the
settings of before are kept.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import demo
from grpo_reward.options import DataOptions, RewardOptions
from inference import run_record
from training_data_construction import sft_run
from training_data_construction.cot_journal import CotJournal
from veason.errors import DataError
from verl.config import Config, ConfigError, WorkerConfig
from verl.trainer import run_folder


class Prediction:
    """`decides` and `may_change` are settings of the command, each with the value of before and another one."""

    decides, may_change, weighs = ("n_frames", 8, 6), ("limit", 3, 9), "data meta"

    def __init__(self, folder: Path) -> None:
        self.record = folder / "run.json"
        self.settings = {"n_frames": 8, "limit": 3, "samples": 3}
        self.inputs = {"data meta": {"bytes": 1}}

    def go(self) -> None:
        samples = {"samples": self.settings["limit"]}
        record = {"settings": {**self.settings, **samples}, "versions": {}, "inputs": self.inputs}
        run_record.keep(self.record, record)

    def change_input(self) -> None:
        self.inputs = {"data meta": {"bytes": 2}}

    def kept(self, name: str) -> list:
        return [each[name] for each in json.loads(self.record.read_text()).get("earlier_settings", [])]


class Training:
    decides, may_change, weighs = ("worker.rollout.n", 8, 4), ("trainer.keep_last", 2, 5), "data.exclude"

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "config.yaml"
        self.settings = {"worker.rollout.n": 8, "trainer.keep_last": 2}
        self.inputs = {"data.exclude": {"list.txt": "1 bytes, a"}}
        self.past = None

    def go(self) -> None:
        """A start of the trainer, and its first checkpoint."""
        config = Config(data=DataOptions(), worker=WorkerConfig(reward=RewardOptions()))
        config.worker.rollout.n = self.settings["worker.rollout.n"]
        config.trainer = replace(config.trainer, keep_last=self.settings["trainer.keep_last"])
        if self.past is not None:
            run_folder.check_config(config, self.past)
            run_folder.check_inputs(config, self.past, self.inputs)
        run_folder.keep_config(config, self.folder)
        progress = {"step": 1, **run_folder.progress(config, self.inputs, None)}
        step = self.folder / "step_000001"
        step.mkdir(exist_ok=True)
        facts = {"progress": progress, "schedule": {}, "model": {}, "ranks": 1}
        (step / "complete.json").write_text(json.dumps(facts))
        self.past = run_folder.Past(step, True, progress)

    def change_input(self) -> None:
        self.inputs = {"data.exclude": {"list.txt": "1 bytes, b"}}

    def kept(self, name: str) -> list:
        last = name.rpartition(".")[2]
        lines = [path.read_text().splitlines() for path in sorted(self.folder.glob("config_*.yaml"))]
        return [int(line.split(":")[1]) for each in lines for line in each if line.strip().startswith(f"{last}:")]


class FineTuning:
    decides, may_change, weighs = ("lora_rank", 8, 16), ("num_train_epochs", 1, 2), "data train.json"

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.record = self.output / "sft_run.json"
        self.settings = {"lora_rank": 8, "num_train_epochs": 1}
        (folder / "settings.yaml").write_text("learning_rate: 1.0e-4\n")
        (folder / "data").mkdir()
        for name in ("dataset_info.json", "train.json"):
            (folder / "data" / name).write_text("{}")

    def go(self) -> None:
        base = Path(demo.__file__).parent / "base_policy"
        arguments = [f"model_name_or_path={base}", f"dataset_dir={self.folder / 'data'}", f"output_dir={self.output}"]
        arguments += [f"{name}={value}" for name, value in self.settings.items()]
        sft_run.start(self.folder / "settings.yaml", self.output, arguments)
        (self.output / "adapter" / "checkpoint-2").mkdir(parents=True, exist_ok=True)

    def change_input(self) -> None:
        (self.folder / "data" / "train.json").write_text("[]")

    def kept(self, name: str) -> list:
        return [json.loads(path.read_text())["settings"][name] for path in sorted(self.output.glob("sft_run_*.json"))]


class ChainsOfThought:
    """Chains of thought: the one setting that may change, the number of samples, is not recorded."""

    decides, may_change, weighs = ("frames", 8, 6), None, "the masks"

    def __init__(self, folder: Path) -> None:
        self.output = folder / "cot.json"
        self.settings, self.inputs = {"frames": 8}, {"the masks": "a"}

    def go(self) -> None:
        with CotJournal(self.output, settings=self.settings, inputs=self.inputs) as journal:
            self.record = journal.path
            if not journal.settled:
                journal.skip("a/2")  # settings without any answer bind nobody

    def change_input(self) -> None:
        self.inputs = {"the masks": "b"}


@pytest.fixture(params=[Prediction, Training, FineTuning, ChainsOfThought])
def run(request, tmp_path):
    begun = request.param(tmp_path)
    begun.go()
    return begun


def test_the_same_run_goes_on(run):
    before = run.record.read_bytes()
    run.go()
    assert run.record.read_bytes() == before


def test_a_setting_that_decides_results_is_refused_by_name_with_both_values(run):
    name, was, now = run.decides
    before = run.record.read_bytes()
    run.settings[name] = now
    with pytest.raises((DataError, ConfigError)) as caught:
        run.go()
    told = str(caught.value)
    assert all(part in told for part in (name, str(was), str(now)))
    assert "\n" not in told
    assert run.record.read_bytes() == before


def test_other_contents_of_an_input_are_refused_by_name(run):
    before = run.record.read_bytes()
    run.change_input()
    with pytest.raises((DataError, ConfigError)) as caught:
        run.go()
    assert run.weighs in str(caught.value)
    assert run.record.read_bytes() == before


def test_what_may_change_takes_effect_and_the_value_of_before_is_kept(run):
    if run.may_change is None:
        return
    name, was, now = run.may_change
    run.settings[name] = now
    run.go()
    assert run.kept(name) == [was]
    run.go()
    assert run.kept(name) == [was]
