"""Additions of ``make gpu-check`` to pytest: its options, the fixture that runs a check in processes of its own, and
the table of what ran, with its JSON."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_checks import build
from outcome import FAILED, SKIPPED, Outcome, table
from place import SIZES
from processes import Processes

NO_GPU = f"there is no CUDA device here (torch {torch.__version__}); --gpu-device cpu takes the same checks over gloo"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("checks on a GPU")
    group.addoption("--gpu-device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, two ranks over gloo")
    group.addoption("--gpu-size", choices=(*SIZES, "both"), help="of the random policy (default: both; on a CPU tiny)")
    group.addoption("--gpu-json", type=Path, metavar="FILE", help="write all results there, too, after every check")
    group.addoption("--gpu-limit", type=float, default=150, metavar="S", help="seconds for one check (default: 150)")
    group.addoption("--gpu-total", type=float, default=480, metavar="S", help="seconds for all checks (default: 480)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(config.getoption("gpu_json", default=None)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take every check through all sizes: all checks of one, then all of the other."""
    if "size" in metafunc.fixturenames:
        size = metafunc.config.getoption("gpu_size", default=None) or ("tiny" if _on_cpu(metafunc.config) else "both")
        metafunc.parametrize("size", SIZES if size == "both" else [size], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available() and not _on_cpu(config):
        for item in items:
            if "apart" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


def _on_cpu(config: pytest.Config) -> bool:
    return config.getoption("gpu_device", default="cuda") == "cpu"


@pytest.fixture(scope="session")
def processes(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    cpu = _on_cpu(pytestconfig)
    limits = {"limit_s": pytestconfig.getoption("gpu_limit", 150), "total_s": pytestconfig.getoption("gpu_total", 480)}
    work = tmp_path_factory.mktemp("checks")
    with Processes(work, cpu=cpu, ranks=2 if cpu else torch.cuda.device_count(), **limits) as running:
        yield running


@pytest.fixture(scope="session")
def built(processes: Processes, size: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Outcome]]:
    """The random policy's folder, and what building it came to. A mid-size one takes 2 GB of the disk."""
    folder = tmp_path_factory.mktemp("policy") / size
    yield folder, processes.run(build, size=size, model=folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def apart(processes: Processes, size: str, record_property: Callable[..., None], request: pytest.FixtureRequest) -> Any:
    """A function that runs a check in processes of its own, adds it to the table, and fails or skips as it did."""

    def run(check: Callable[..., Any], *, on_all: bool = False, needs_policy: bool = True) -> None:
        folder, outcome = request.getfixturevalue("built") if needs_policy else (Path(), None)
        if check is not build:
            if outcome and outcome.state == FAILED:
                pytest.fail(f"there is no policy, since build failed: {outcome.why}", pytrace=False)
            outcome = processes.run(check, size=size, model=folder, on_all=on_all)
        record_property("gpu", asdict(outcome))
        if outcome.state == SKIPPED:
            pytest.skip(outcome.why)
        if outcome.state == FAILED:
            pytest.fail(f"{outcome.why}\n{outcome.trace}", pytrace=False)

    return run


class Table:
    """Collects what the checks came to, from the reports of the tests."""

    def __init__(self, json_file: Path | None) -> None:
        self._json, self._start, self._outcomes = json_file, time.monotonic(), []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [Outcome(**value) for name, value in report.user_properties if name == "gpu"]
        if report.when == "call" and found:
            self._outcomes += found
            if self._json:  # a reader finds the old file or the new one
                partial = self._json.with_name(self._json.name + ".partial")
                partial.write_text(json.dumps([asdict(each) for each in self._outcomes], indent=1) + "\n")
                os.replace(partial, self._json)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._outcomes:
            terminalreporter.section("checks on a device")
            terminalreporter.write_line(table(self._outcomes, seconds=time.monotonic() - self._start))
