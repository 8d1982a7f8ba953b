"""How commands end."""

import errno
import signal
import subprocess
import sys

import pytest

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
    """What the body has to clean up is cleaned up; one line, 128 + 15; the handler of before is back."""
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
    out, err = child.communicate(timeout=30)
    assert (out, child.returncode, err.count("\n")) == ("cleaned\n", 143, 1)
    assert err.startswith("terminated;")
