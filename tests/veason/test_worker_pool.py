"""Many items in order, in this process and in others; and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from veason.errors import DataError
from veason.worker_pool import map_in_order


def square(shared, item):
    if item == shared:
        raise ValueError(f"no {item}")
    return item * item, os.getpid()


def die(_, item):
    os._exit(3)


def numbers(shared, items, workers):
    return list(map_in_order(square, shared, items, workers=workers, label="squares", unit="n"))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    found = numbers(None, range(40), workers)
    assert [value for value, _ in found] == [n * n for n in range(40)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_are_raised_and_nothing_is_no_work(workers):
    assert numbers(None, [], workers) == []
    with pytest.raises(ValueError, match="no 3"):
        numbers(3, range(40), workers)


def test_a_worker_that_dies_is_told():
    with pytest.raises(DataError, match="a worker died"):
        list(map_in_order(die, None, [1, 2], workers=2, label="", unit=""))


PROGRAM = """
import os, sys, time
from pathlib import Path
from veason.command import run_command
from veason.worker_pool import map_in_order

def wait(folder, item):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    sys.exit(run_command(lambda: list(map_in_order(wait, sys.argv[1], [1, 2, 3], workers=2, label="", unit=""))))
"""


def running(pid):
    """Returns True if the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(true, seconds=600):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("whole_group", [False, True])
def test_workers_end_with_their_parent(tmp_path, number, status, whole_group):
    """In the middle of long tasks; the keyboard's interrupt goes to every process of the group."""
    program, pids = tmp_path / "program.py", tmp_path / "pids"
    program.write_text(PROGRAM)
    pids.mkdir()
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(program), str(pids)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    until(lambda: len(list(pids.iterdir())) == 2)
    workers = [int(path.name) for path in pids.iterdir()]
    if whole_group:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    _, said = parent.communicate(timeout=600)
    until(lambda: not any(map(running, workers)))
    assert parent.returncode == status
    assert "Traceback" not in said
    if number != signal.SIGKILL:  # after which Python's own tracker of semaphores may say that it cleaned up
        assert said.count("\n") == 1, said
