"""Log lines on stderr: step, process and level are named; other packages are heard from warnings on."""

import logging
import runpy
from pathlib import Path

import pytest

from verl.utils import logs


@pytest.fixture(autouse=True)
def no_handler_left():
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)


def test_lines_name_step_and_rank(capsys):
    log = logging.getLogger("verl.trainer")
    logs.configure("rank 3")
    log.info("building")
    logs.set_step(12)
    log.info("drawn %d replies", 8)
    log.warning("too few")
    logs.set_step(None)
    log.error("gone")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "[rank 3] building",
        "[step 12 rank 3] drawn 8 replies",
        "[step 12 rank 3] warning: too few",
        "[rank 3] error: gone",
    ]
    assert captured.out == ""


def test_the_driver_has_no_rank(capsys):
    logs.configure()
    logging.getLogger("verl").info("plain")
    logs.set_step(1)
    logging.getLogger("verl").info("in a step")
    assert capsys.readouterr().err.splitlines() == ["plain", "[step 1] in a step"]


def test_configuring_again_does_not_write_lines_twice(capsys):
    logs.configure()
    logs.configure("rank 0")
    logging.getLogger("verl.engines").info("once")
    assert capsys.readouterr().err.splitlines() == ["[rank 0] once"]


def test_other_packages_are_heard_from_warnings_on(capsys):
    logs.configure()
    logging.getLogger("some_library").info("chatter")
    logging.getLogger("some_library").warning("odd weights")
    logging.getLogger("verl.engines").debug("detail")
    assert capsys.readouterr().err.splitlines() == ["warning: odd weights"]


def test_the_command_is_heard_though_python_calls_its_module_main(capsys):
    path = Path(logs.__file__).parents[1] / "trainer" / "main.py"
    module = runpy.run_path(str(path), run_name="as `python -m` names it otherwise")
    logs.configure()
    module["log"].info("resumed with a change")
    assert capsys.readouterr().err == "resumed with a change\n"


def test_control_characters_of_a_name_do_not_reach_the_terminal(capsys):
    logs.configure()
    logging.getLogger("verl").warning("%s: no such file\nits folder is empty", "a\x1b]0;title\x07b")
    assert capsys.readouterr().err == "warning: a\\x1b]0;title\\x07b: no such file\nits folder is empty\n"
