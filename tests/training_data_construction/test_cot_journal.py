"""The journal: what is kept, how it is taken up again, and who may."""

import json
from collections import Counter
from pathlib import Path

import pytest

from training_data_construction.cot_journal import CotJournal, Outcome
from training_data_construction.records import CotRecord
from veason.completion import Completion
from veason.errors import DataError
from veason.types import Answer, Clip, VideoSample

REPLY = Completion("It jumps.", "stop", 100, 10, "m-1")
SETTINGS = {"model": "m", "seed": 1}


def record(exp_id: str) -> CotRecord:
    sample = VideoSample("revos", "a", exp_id, "the cat", ("0", "1"), Path("frames"), (4, 6), anno_ids=(1,))
    clip = Clip(frame_ids=(0, 1), size=(28, 28))
    return CotRecord(sample=sample, clip=clip, thinking="It jumps.", answer=Answer(keyframe=1, boxes=((1, 2, 3, 4),)))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "deep" / "cot.json"


def open_journal(output, *, inputs=None, **changes):
    return CotJournal(output, settings={**SETTINGS, **changes}, inputs=inputs)


def test_everything_is_taken_up_again(output):
    with open_journal(output) as journal:
        journal.accept(record("1"), REPLY, template=None)
        journal.reject("a/0", REPLY, "mentions_boxes")
        journal.reject("a/0", REPLY, "empty")
        journal.skip("a/2")
    with open_journal(output) as journal:
        assert journal.settled == {"a/1", "a/2"}
        assert journal.rejections == {"a/0": 2}
        assert (journal.tally.answers, journal.tally.prompt_tokens, journal.tally.completion_tokens) == (3, 300, 30)
        assert journal.tally.cost(2.0, 10.0) == pytest.approx(300 * 2e-6 + 30 * 10e-6)


def test_the_output_is_in_the_order_of_the_samples(output):
    with open_journal(output) as journal:
        for exp_id in "312":
            journal.accept(record(exp_id), REPLY, template=None)
        journal.reject("a/0", REPLY, "empty")
        outcome = journal.assemble(["a/0", "a/1", "a/2", "a/3", "a/4"], failures=[("a/4", "HTTP 500: no")])
    assert outcome == Outcome(records=3, no_target=0, missing=1, rejected=Counter({"empty": 1}))
    records = json.loads(output.read_text())
    assert [r["exp_id"] for r in records] == ["1", "2", "3"]
    assert records[0] == record("1").to_json()
    assert [json.loads(line) for line in journal.rejects_path.read_text().splitlines()] == [
        {"key": "a/0", "reason": "empty", "answers": 1, "text": "It jumps."},
        {"key": "a/4", "reason": "no_answer", "detail": "HTTP 500: no"},
    ]
    with open_journal(output) as journal:
        journal.assemble([])
    assert json.loads(output.read_text()) == []


def test_a_half_written_line_is_asked_for_again(output):
    with open_journal(output) as journal:
        for exp_id in "12":
            journal.accept(record(exp_id), REPLY, template=None)
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 7, len(whole) - 1):
        journal.path.write_bytes(whole[:cut])
        with open_journal(output) as again:
            kept = max(0, whole[:cut].count(b"\n") - 1)
            assert again.settled == {f"a/{i + 1}" for i in range(kept)}
            again.accept(record("9"), REPLY, template=None)
        lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
        assert lines[0] == {"settings": SETTINGS}
        assert [line["key"] for line in lines[1:]] == [*(f"a/{i + 1}" for i in range(kept)), "a/9"]


def test_other_settings_are_named(output):
    with open_journal(output) as journal:
        journal.skip("a/1")
    with pytest.raises(DataError, match=r"another run \(model: m there, other now; frames: None there, 4 now\)"):
        open_journal(output, model="other", frames=4).__enter__()


def test_settings_without_an_answer_bind_nobody(output):
    with open_journal(output, model="a typo"):
        pass
    with open_journal(output) as journal:
        journal.skip("a/1")
    assert json.loads(journal.path.read_text().splitlines()[0]) == {"settings": SETTINGS}


def test_nothing_follows_a_half_written_line(output, monkeypatch):
    """A disk that fills up while answers still come in, and has room again for the last of them."""
    with open_journal(output) as journal:
        journal.accept(record("1"), REPLY, template=None)
        with monkeypatch.context() as patch:
            patch.setattr(journal._journal, "append", fail_half_way(journal.path))
            with pytest.raises(OSError, match="full"):
                journal.accept(record("2"), REPLY, template=None)
        with pytest.raises(OSError, match="full"):
            journal.accept(record("3"), REPLY, template=None)
    with open_journal(output) as journal:
        assert journal.settled == {"a/1"}


def fail_half_way(path):
    def append(line):
        with open(path, "ab") as file:
            file.write(b'{"kind": "rec')
        raise OSError(28, "the disk is full")

    return append


def test_no_resume_never_deletes(output):
    with open_journal(output) as journal:
        journal.accept(record("1"), REPLY, template=None)
    before = journal.path.read_bytes()
    with pytest.raises(DataError, match="nothing paid for is ever deleted"):
        CotJournal(output, settings=SETTINGS, resume=False).__enter__()
    assert journal.path.read_bytes() == before


def test_an_output_without_its_journal_is_left_alone(output):
    output.parent.mkdir()
    output.write_text("[1]")
    with pytest.raises(DataError, match="exists without its journal"):
        open_journal(output).__enter__()
    assert output.read_text() == "[1]"


def test_one_writer_at_a_time(output):
    with open_journal(output), pytest.raises(DataError, match="another process is writing here"):
        open_journal(output).__enter__()
    with open_journal(output):
        pass


@pytest.mark.parametrize(
    ("line", "message"),
    [("{nope}", r"journal\.jsonl:2: not a JSON record.*take the line out"), ('{"kind": "record"}', "another kind")],
)
def test_a_bad_line_is_named(output, line, message):
    with open_journal(output) as journal:
        pass
    with open(journal.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        open_journal(output).__enter__()


def test_another_file_is_not_taken_for_a_journal(output):
    output.parent.mkdir()
    output.with_name("cot.json.journal.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="no journal of ours"):
        open_journal(output).__enter__()


def test_what_a_killed_run_left_is_removed(output):
    output.parent.mkdir()
    for name in (".cot.json.abcdef_1", ".cot.json.rejects.jsonl.abcdef_1", "other"):
        (output.parent / name).touch()
    with open_journal(output):
        pass
    assert sorted(p.name for p in output.parent.iterdir()) == ["cot.json.journal.jsonl", "other"]


def test_inputs_are_noted_as_they_come_and_compared(output):
    with open_journal(output, inputs={"a": "1"}) as journal:
        journal.skip("a/1")
    with open_journal(output, inputs={"a": "1", "b": "2"}):
        pass
    with pytest.raises(DataError, match="other data: b changed since"):
        open_journal(output, inputs={"b": "3"}).__enter__()
    with open_journal(output, inputs={"a": "1"}) as journal:
        assert journal.settled == {"a/1"}
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert lines[0] == {"settings": SETTINGS, "inputs": {"a": "1"}}
    assert lines[2:] == [{"inputs": {"b": "2"}}]
