"""How commands end."""

import errno

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
