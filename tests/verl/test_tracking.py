"""Metrics are written, cut off on resume, and shown."""

import io
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from verl.config import Config, ConfigError
from verl.utils import tracking
from verl.utils.tracking import Console, JsonLines, MetricsLog, read_lines, short


def log(folder, *, backends=("jsonl",), first_step=0, steps=()):
    config = Config()
    config.trainer.logger = list(backends)
    with MetricsLog(config, folder, total_steps=9, first_step=first_step) as writer:
        for step in steps:
            writer.write(
                step, {"reward/total": step / 3, "actor/kl": torch.tensor(0.5)}, {"generate": 1.0 + first_step}
            )


class TestJsonLines:
    def test_a_line_by_hand(self, tmp_path):
        log(tmp_path, steps=[3])
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "actor/kl": 0.5, "reward/total": 1.0}\n'
        assert (tmp_path / "timings.jsonl").read_text() == '{"step": 3, "generate": 1.0}\n'

    def test_killed_and_resumed_equals_uninterrupted(self, tmp_path):
        log(tmp_path / "whole", steps=range(1, 7))
        log(tmp_path / "killed", steps=range(1, 6))  # the last checkpoint was after step 3
        with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
            file.write('{"step": 6, "actor/')  # cut off in the middle of a line
        log(tmp_path / "killed", first_step=3, steps=range(4, 7))
        whole, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed"))
        assert killed == whole
        times = read_lines(tmp_path / "killed" / "timings.jsonl")
        assert [line["generate"] for line in times] == [1, 1, 1, 4, 4, 4]

    def test_a_fresh_start_empties_the_file(self, tmp_path):
        log(tmp_path, steps=[0, 1, 2])
        log(tmp_path, steps=[0])
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0]

    def test_the_line_before_the_first_step_survives_a_resume(self, tmp_path):
        log(tmp_path, steps=[0, 1, 2])
        log(tmp_path, first_step=1, steps=[2])
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]

    def test_half_a_last_line_is_cut_even_if_no_step_is_repeated(self, tmp_path):
        log(tmp_path, steps=[1])
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step"')
        log(tmp_path, first_step=1, steps=[2])
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]

    def test_a_broken_line_in_the_middle_is_named(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: expected a JSON object with a step, found b'nonsense"):
            log(tmp_path, first_step=2)

    @pytest.mark.parametrize("left", [b"", b'{"step": 1, "a": 0}\n', b'{"step": 1, "a": 0}\n{"step": 2, "a', None])
    def test_lines_that_are_lost_are_told(self, tmp_path, caplog, left):
        log(tmp_path, steps=[1, 2])
        assert caplog.messages == []
        path = tmp_path / "metrics.jsonl"
        path.unlink() if left is None else path.write_bytes(left)
        log(tmp_path, first_step=2, steps=[3])
        assert caplog.messages == [f"{path} has no line of step 2, from which the run resumes"]
        assert caplog.records[0].levelname == "WARNING"
        assert [line["step"] for line in read_lines(path)] == ([1, 3] if left else [3])

    def test_no_finite_number_is_null(self, tmp_path):
        lines = JsonLines(tmp_path)
        lines.write(1, {"a": math.nan, "b": math.inf, "c": 1.0}, {})
        lines.close()
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": None, "c": 1.0}

    def test_each_line_is_there_at_once(self, tmp_path):
        lines = JsonLines(tmp_path)
        lines.write(1, {"a": 1.0}, {})
        assert len(read_lines(tmp_path / "metrics.jsonl")) == 1
        lines.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestConsole:
    metrics = {"reward/total": 2.5, "actor/kl": 1.5e-5, "unseen": 1.0}  # noqa: RUF012

    def test_plain_line(self, monkeypatch):
        clock = iter([0.0, 10.0, 20.0])
        monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
        stream = io.StringIO()
        console = Console(total_steps=625, stream=stream)
        console.write(1, self.metrics, {})
        console.write(2, self.metrics, {})
        last = stream.getvalue().splitlines()[-1]
        assert last == "step   2/625   0%  reward 2.5  kl 1.5e-05  eta 1:43:50"  # 623 steps of 10 s

    def test_terms_of_the_reward_stand_under_their_own_names(self):
        metrics = {"group/equal": 0.5, "reward/without_problem": 1.0, "reward/brevity": 2.0, "reward/total": 3.0}
        stream = io.StringIO()
        Console(total_steps=9, stream=stream).write(0, metrics, {})
        assert stream.getvalue() == "step 0/9   0%  reward 3  brevity 2  equal 0.5000  eta ?\n"

    def test_a_long_name_of_a_term_is_cut_to_its_column(self):
        stream = Terminal()
        Console(total_steps=9, stream=stream).write(0, {"reward/total": 3.0, "reward/a_term_of_the_reward": 2.0}, {})
        head, row = stream.getvalue().replace("\033[1m", "").replace("\033[0m", "").splitlines()
        assert head == "step       reward a_term_o"
        assert row == "0/9   0%        3        2  eta ?"

    def test_columns_line_up_on_a_terminal(self):
        stream = Terminal()
        console = Console(total_steps=100, stream=stream)
        for step in (1, 10, 100):
            console.write(step, {**self.metrics, "actor/grad_norm": 10.0**step if step < 99 else math.nan}, {})
        head, *rows = stream.getvalue().replace("\033[1m", "").replace("\033[0m", "").splitlines()
        for name in ("reward", "kl", "grad"):
            end = head.index(name) + len(name)
            assert all(row[end - 1] != " " and row[end] == " " for row in [f"{row} " for row in rows])

    def test_a_column_that_comes_late_gets_a_new_header(self):
        stream = Terminal()
        console = Console(total_steps=9, stream=stream)
        console.write(1, self.metrics, {})
        console.write(2, {**self.metrics, "val/reward/total": 1.0}, {})
        console.write(3, self.metrics, {})
        assert stream.getvalue().count("\033[1m") == 2

    def test_before_the_first_step_nothing_is_known(self):
        stream = io.StringIO()
        Console(total_steps=9, stream=stream).write(0, {"val/reward/total": 1.0}, {})
        assert stream.getvalue() == "step 0/9   0%  val 1  eta ?\n"

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.0, "0.0000"), (0.0012, "0.0012"), (2.1344, "2.134"), (1.2e-7, "1.2e-07"), (312.46, "312.5"),
         (-12345, "-1.2e+04"), (math.nan, "nan")],
    )  # fmt: skip
    def test_short_numbers(self, value, text):
        assert short(value) == text


class TestOthers:
    def test_tensorboard_holds_the_numbers(self, tmp_path):
        event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        log(tmp_path, backends=["tensorboard"], steps=[1, 2])
        events = event_files.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [(each.step, each.value) for each in events.Scalars("actor/kl")] == [(1, 0.5), (2, 0.5)]
        assert events.Scalars("time/generate")[0].value == 1.0

    def test_wandb_gets_numbers_and_configuration_under_one_id(self, tmp_path, monkeypatch):
        calls = []

        class Run:
            def log(self, values, step):
                calls.append((step, values))

            def finish(self):
                calls.append("finish")

        class Module:
            @staticmethod
            def init(**options):
                calls.append(options)
                return Run()

        monkeypatch.setitem(sys.modules, "wandb", Module)
        log(tmp_path, backends=["wandb"], steps=[1])
        log(tmp_path, backends=["wandb"], first_step=1)
        log(tmp_path, backends=["wandb"])  # begins anew: the run above died before its first checkpoint
        first, line, finished, second, _, third, _ = calls
        assert line == (1, {"reward/total": 1 / 3, "actor/kl": 0.5, "time/generate": 1.0})
        assert finished == "finish"
        assert first["config"]["worker.actor.optim.lr"] == 1e-6
        assert first["id"] == second["id"] != third["id"]

    def test_files_of_another_run_are_no_past_of_one_that_begins_elsewhere(self, tmp_path):
        log(tmp_path, steps=[1, 2])
        config = Config()
        config.trainer.logger = ["jsonl"]
        with MetricsLog(config, tmp_path, total_steps=9, first_step=2, goes_on=False) as writer:
            writer.write(3, {"reward/total": 1.0}, {})
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [3]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({}, "no key for it: set WANDB_API_KEY"),
            ({"WANDB_API_KEY": "abc"}, "40+ characters"),
            ({"WANDB_API_KEY": "abc", "WANDB_MODE": "offline"}, "fine"),
            ({"WANDB_API_KEY": "a" * 40}, "fine"),
        ],
    )
    def test_wandb_without_a_key_is_refused_before_anything_starts(self, tmp_path, given, words):
        """In a process of its own, since W&B remembers what it has found."""
        pytest.importorskip("wandb")
        code = (
            "from verl.config import ConfigError\n"
            "from verl.utils import tracking\n"
            "try: print(tracking.check(['wandb']) or 'fine')\n"
            "except ConfigError as error: print(error)"
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        empty = {name: str(tmp_path) for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_DIR")}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**kept, **empty, **given}, capture_output=True, text=True, check=True
        )
        assert words in done.stdout
        assert "abc" not in done.stdout

    @pytest.mark.parametrize("name", ["tensorboard", "wandb"])
    def test_a_package_that_is_not_there_is_told_before_anything_starts(self, monkeypatch, name):
        monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=f"trainer.logger names {name}.* pip install {name}"):
            tracking.check([name])

    def test_what_wandb_says_is_one_line_without_the_key(self, tmp_path, monkeypatch):
        class Refused(Exception):
            pass

        class Module:
            Error = Refused

            @staticmethod
            def init(**_):
                raise Refused("bad key\n0123456789")

        monkeypatch.setitem(sys.modules, "wandb", Module)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789")
        with pytest.raises(ConfigError, match=r"could not begin a run: bad key \*\*\*\. WANDB_MODE=offline"):
            log(tmp_path, backends=["wandb"])

    @pytest.mark.slow
    def test_wandb_works_offline(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        pytest.importorskip("wandb")
        log(tmp_path, backends=["wandb"], steps=[1])
        assert list(tmp_path.rglob("*.wandb"))

    @pytest.mark.parametrize(("backend", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboard")])
    def test_missing_package_says_how_to_get_it(self, tmp_path, monkeypatch, backend, package):
        def absent(name):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

        monkeypatch.setattr(tracking.importlib, "import_module", absent)
        with pytest.raises(ModuleNotFoundError, match=f"trainer.logger names {package}.*pip install {package}"):
            log(tmp_path, backends=[backend])
