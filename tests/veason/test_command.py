"""Commands: their log messages, and how they end."""

import errno
import logging
import signal
import subprocess
import sys

import pytest
from tqdm import tqdm

from veason.command import run_command
from veason.errors import DataError


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("a\x1b[31m: wrong"), 2, "error: a\\x1b[31m: wrong\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, "error: out/x: no space left;"),
        (OSError(errno.EROFS, "Read-only file system", "out/x"), 2, "error: out/x: the file system is read-only;"),
        (KeyboardInterrupt(), 130, "stopped;"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(capsys, error, status, line):
    assert run_command(raising(error)) == status
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_a_defect_of_ours_propagates_and_success_is_zero():
    with pytest.raises(OSError, match="Invalid"):
        run_command(raising(OSError(errno.EINVAL, "Invalid argument")))
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 2) == 2


def test_sigterm_unwinds_the_body(tmp_path):
    """The body's clean-up runs, one line is printed, the exit code is 128 + 15, and the old handler is restored."""
    code = (
        "import signal, sys, time\n"
        "from veason.command import run_command\n"
        "def main():\n"
        "    try:\n"
        "        print('up', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "status = run_command(main)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "sys.exit(status)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=600)
    assert (out, child.returncode, err.count("\n")) == ("cleaned\n", 143, 1)
    assert err.startswith("terminated;")


def logging_main(logger="inference.predict"):
    log = logging.getLogger(logger)
    log.debug("hidden")
    log.info("12 of 12 done")
    log.warning("a\x1b[31m is\nodd")
    log.error("%s is bad", "b")


@pytest.mark.parametrize("logger", ["inference.predict", "veason", "__main__"])
def test_messages_are_one_printable_line_each_on_stderr(capsys, logger):
    assert run_command(lambda: logging_main(logger)) == 0
    assert run_command(lambda: run_command(lambda: logging_main(logger))) == 0  # nothing twice
    printed = capsys.readouterr()
    lines = ["12 of 12 done", "warning: a\\x1b[31m is odd", "error: b is bad"]
    assert (printed.err.splitlines(), printed.out) == (lines * 2, "")


def test_libraries_are_heard_from_warnings_on(capsys):
    run_command(lambda: logging_main("some.library"))
    assert capsys.readouterr().err.splitlines() == ["warning: a\\x1b[31m is odd", "error: b is bad"]


def test_a_command_leaves_logging_as_it_was(capsys):
    before = list(logging.getLogger().handlers), logging.getLogger("veason").level
    run_command(lambda: None)
    assert (list(logging.getLogger().handlers), logging.getLogger("veason").level) == before


def test_a_traceback_that_is_logged_is_whole(capsys):
    def main():
        try:
            raise KeyError("gone")
        except KeyError:
            logging.getLogger("veason").exception("a defect")

    run_command(main)
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[1], lines[-1]) == (
        "error: a defect",
        "Traceback (most recent call last):",
        "KeyError: 'gone'",
    )


def test_a_message_does_not_tear_a_progress_bar(capsys):
    def main():
        with tqdm(total=3, desc="examining", file=sys.stderr) as bar:
            bar.update()
            logging.getLogger("veason").info("a remark")
            bar.update()

    run_command(main)
    shown = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n")]  # what a terminal shows
    assert shown[0] == "a remark"
    assert shown[1].startswith("examining")


def test_set_up_twice_prints_once():
    code = (
        "import logging\n"
        "from veason.command import set_up_logging\n"
        "set_up_logging(); set_up_logging()\n"
        "logging.getLogger('eval').info('once')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == ("once\n", "")
