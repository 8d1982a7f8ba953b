"""Whole files or none; journals that survive a cut."""

import errno
import os
from pathlib import Path

import pytest

from veason import atomic
from veason.errors import DataError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(path, {"x": float("nan")})
    with pytest.raises(TypeError):
        atomic.write_bytes(path, "not bytes")
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.json.x1_y2z3w", ".a.json.lock", ".b.json.x1_y2z3w", "a.json", ".a.json.x1_y2z3w.png"):
        (tmp_path / name).touch()
    atomic.remove_leftovers(tmp_path / "a.json")
    kept = [".a.json.lock", ".a.json.x1_y2z3w.png", ".b.json.x1_y2z3w", "a.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    def parts():
        yield b"a"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"a\.json"):
        atomic.write_parts(tmp_path / "a.json", parts())
    assert list(tmp_path.iterdir()) == []


def test_a_journal_goes_on_after_a_half_written_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    with atomic.Journal(path) as journal:
        journal.append({"i": 0})
        journal.append({"i": 1, "text": "é\u2028 \ud800"})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert [r["i"] for r in atomic.read_journal(path)] == list(range(whole[:cut].count(b"\n")))
        with atomic.Journal(path) as journal:
            journal.append({"i": 9})
        assert [r["i"] for r in atomic.read_journal(path)] == [*range(whole[:cut].count(b"\n")), 9]


@pytest.mark.parametrize("line", [b"{nope}\n", b"[1]\n", b'{"a": "\xff"}\n'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"i": 0}\n' + line)
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: "):
        list(atomic.read_journal(path))


def test_a_second_writer_of_a_journal_is_refused_until_the_first_one_closes(tmp_path):
    path = tmp_path / "lines.jsonl"
    with atomic.Journal(path) as journal:
        journal.append({"i": 0})
        with pytest.raises(DataError, match=r"lines\.jsonl: another process is writing here"):
            atomic.Journal(path)
    with atomic.Journal(path) as journal:
        journal.append({"i": 1})
    assert [r["i"] for r in atomic.read_journal(path)] == [0, 1]


def test_a_file_system_without_locks_is_told_with_a_way_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    with pytest.raises(DataError, match=r"has no locks .* VEASON_NO_LOCKS=1"):
        atomic.Journal(tmp_path / "lines.jsonl")
    monkeypatch.setenv("VEASON_NO_LOCKS", "1")
    with atomic.Journal(tmp_path / "lines.jsonl") as journal:
        journal.append({"i": 0})


def test_the_end_of_a_long_journal_is_found_from_its_end(tmp_path):
    path = tmp_path / "long.jsonl"
    lines = b'{"i": 0}\n' * 20_000
    for rest in (b"", b"x" * 200_000):  # a cut line longer than what is read at a time
        path.write_bytes(lines + rest)
        atomic.Journal(path).close()
        assert path.read_bytes() == lines


def test_a_file_system_is_synced_by_any_folder_of_it(tmp_path):
    atomic.sync_filesystem(tmp_path)
    with pytest.raises(FileNotFoundError):
        atomic.sync_filesystem(tmp_path / "no")


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(DataError, match=rf"{name}: no regular file \(a pipe, socket or device\)"):
            atomic.write_bytes(tmp_path / name, b"text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_place_where_nothing_can_be_made_is_one_line():
    for make in (
        lambda path: atomic.write_bytes(path, b""),
        atomic.Lock,
        atomic.Journal,
        lambda path: atomic.write_bytes(path / "below", b""),
    ):
        with pytest.raises(DataError, match=r"/proc/x\.html.*: nothing can be created there; choose another folder"):
            make(Path("/proc/x.html"))
