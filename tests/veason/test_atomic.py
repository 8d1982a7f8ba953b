"""Whole files or none; journals that survive a cut."""

import pytest

from veason import atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(path, {"x": float("nan")})
    with pytest.raises(TypeError):
        atomic.write_bytes(path, "not bytes")
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


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
