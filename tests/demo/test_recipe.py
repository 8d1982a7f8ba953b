"""Stages run once, print what they run, and refuse a folder of a run with other settings."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo import ablations
from demo.recipe import Recipe, StageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A recipe whose commands are recorded and not run."""
    commands = []
    monkeypatch.setattr(
        Recipe, "run_module", lambda self, module, *words: commands.append((module, [str(w) for w in words]))
    )
    monkeypatch.setattr(
        Recipe, "run_script", lambda self, script, environment, *words: commands.append((script.name, environment))
    )
    monkeypatch.setattr(Recipe, "serve_teacher", lambda self: _NoTeacher())
    return Recipe(tmp_path, seed=3, videos=8, records=20, steps=2), commands


class _NoTeacher:
    def __enter__(self):
        return "http://127.0.0.1:1/v1"

    def __exit__(self, *_):
        return None


def test_the_demo_is_the_whole_recipe_in_order(recorded):
    r, commands = recorded
    r.run()
    assert [module for module, _ in commands] == [
        "demo.world",
        "training_data_construction.data_sampling",
        "training_data_construction.seed_cot_generation",
        "training_data_construction.build_sft",
        "run_sft_tiny.sh",
        "verl.trainer.main",
        "verl.plot",
        "verl.export",
        *["inference.predict", "eval.revos"] * 3,
        "inference.compare",
    ]


def test_finished_stages_are_skipped(recorded, capsys):
    r, commands = recorded
    r.run()
    count = len(commands)
    r.run()
    assert [module for module, _ in commands[count:]] == ["inference.compare"]
    assert "done, in" in capsys.readouterr().out


def test_an_unfinished_stage_leaves_no_record(recorded, monkeypatch):
    r, _ = recorded

    def fail(self, module, *words):
        raise StageError(f"{module} failed")

    monkeypatch.setattr(Recipe, "run_module", fail)
    with pytest.raises(StageError, match=r"demo\.world failed"):
        r.make_world()
    assert not (r.out / "stages").exists()


def test_another_seed_in_the_same_folder_is_refused(recorded):
    r, _ = recorded
    r.make_world()
    with pytest.raises(StageError, match=r"'seed': 3.*'seed': 4.*choose another --output"):
        Recipe(r.out, seed=4, videos=8, records=20, steps=2).make_world()


def test_records_say_how_long_it_took(recorded):
    r, _ = recorded
    r.make_world()
    assert json.loads((r.out / "stages" / "world.json").read_text())["seconds"] >= 0


def test_ablations_share_what_they_can(recorded):
    r, commands = recorded
    for ablation in ablations.ABLATIONS:
        ablations.run_ablation(r, ablation)
    modules = [module for module, _ in commands]
    assert modules.count("run_sft_tiny.sh") == 2  # with and without thinking
    assert modules.count("verl.trainer.main") == 7
    assert modules.count("inference.predict") == len(ablations.ABLATIONS)
    starts = {
        ablation.name: next(
            word for words in [w for m, w in commands if m == "verl.trainer.main"] for word in words
            if word.startswith("trainer.save") and word.endswith(f"/{ablation.name}")
        )
        for ablation in ablations.ABLATIONS
        if ablation.grpo
    }  # fmt: skip
    assert len(starts) == 7


def test_the_table_of_ablations_puts_the_papers_differences_beside_ours():
    full = {"jf": 40.0, "usable": 99.0, "keyframe_ratio": 80.0, "box_iou": 30.0}
    less = {**full, "jf": 37.5, "differences": {"jf_referring": -1.25, "jf_reasoning": -3.75}}
    runs = [{**full, "differences": {"jf_referring": 0.0, "jf_reasoning": 0.0}}, *[less] * 9]
    lines = ablations.table(runs).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    assert cells[2] == ["full", "40.0", "+0.0", "+0.0", "99.0", "80.0", "30.0", "+0.0, +0.0"]
    assert cells[3] == ["without spatial reward", "37.5", "-1.2", "-3.8", "99.0", "80.0", "30.0", "-2.0, -2.9"]
    assert cells[6][-1] == "not reported"  # without format reward


def test_a_failing_command_ends_the_demo_with_its_name(tmp_path):
    with pytest.raises(StageError, match="no_such_module failed with exit code 1"):
        Recipe(tmp_path).run_module("no_such_module")


def test_a_recipe_that_is_terminated_ends_its_command_in_order(tmp_path):
    (tmp_path / "slow_stage.py").write_text(
        "import pathlib, sys, time\n"
        "from veason.command import run_command\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def main():\n"
        "    try:\n"
        "        (folder / 'begun').touch()\n"
        "        time.sleep(300)\n"
        "    finally:\n"
        "        (folder / 'ended').touch()\n"
        "sys.exit(run_command(main))\n"
    )
    (tmp_path / "recipe_of_one.py").write_text(
        "import pathlib, sys\n"
        "from demo.recipe import Recipe\n"
        "from veason.command import run_command\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "sys.exit(run_command(lambda: Recipe(folder).run_module('slow_stage', folder)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    words = [sys.executable, "-m", "recipe_of_one", str(tmp_path)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "ended").exists()
    assert told.splitlines() == ["terminated; the same command goes on where this one was"] * 2
