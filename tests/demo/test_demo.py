"""`make demo` for real, as small as it goes: every stage's own command, from the world to the page of three models."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SMALL = ["--videos", "8", "--records", "8", "--steps", "1"]


def run_demo(out: Path) -> str:
    command = [sys.executable, "-m", "demo", "--output", str(out), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo_out"
    return out, run_demo(out)


def test_all_three_models_are_scored_and_shown(demo):
    out, printed = demo
    rows = [line.split()[0] for line in printed.splitlines() if re.match(r"(base|SFT|GRPO) {2,}\d", line)]
    assert rows == ["base", "SFT", "GRPO"]
    page = (out / "comparison" / "comparison.html").read_text()
    assert all(f">{name}<" in page for name in rows)
    expected = sum(
        len(video["expressions"])
        for video in json.loads((out / "world" / "meta_expressions_valid_.json").read_text())["videos"].values()
    )
    for name in ("base", "sft", "grpo"):
        with open(out / f"predictions_{name}" / "scores" / "results.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == expected


def test_training_left_what_others_load(demo):
    out, _ = demo
    assert len((out / "grpo" / "metrics.jsonl").read_text().splitlines()) == 1
    for folder in (out / "sft" / "merged", out / "grpo" / "exported"):
        assert list(folder.glob("*.safetensors"))
        assert (folder / "processor_config.json").exists()


def test_a_second_run_only_compares(demo):
    out, _ = demo
    commands = [line for line in run_demo(out).splitlines() if line.startswith("$ ")]
    assert len(commands) == 1
    assert "inference.compare" in commands[0]
