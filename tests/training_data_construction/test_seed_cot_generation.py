"""The command against a real server: what is asked, what is kept, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from chat_server import TEXT, Act, ChatServer, completion

from demo.writer import build_world
from training_data_construction import cot_run
from training_data_construction import seed_cot_generation as command
from training_data_construction.records import read_records
from veason import chat
from veason.atomic import read_journal
from veason.datasets.revos import ReVOS
from veason.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


class Job:
    """A hand-made root with `count` expressions that have a target, and the command over it."""

    def __init__(self, hand_made, tmp_path: Path, count: int) -> None:
        video = hand_made.meta["videos"][hand_made.video]
        for i in range(3, count + 1):
            video["expressions"][str(i)] = {
                "exp": f"the square {i}",
                "obj_id": [0],
                "anno_id": [9000000001],
                "type_id": 0,
            }
        self.root, self.output = hand_made.write(), tmp_path / "cot.json"
        self.arguments = [
            *("--meta_json", self.root / "meta_expressions_valid_.json"),
            *("--mask_dict", self.root / "mask_dict.json"),
            *("--data_path", self.root / "JPEGImages"),
            *("--output_json", self.output),
            *("--max_samples_per_video", "1000", "--num_workers", "1", "--model", "m"),
            "--allow-scored-split",  # the hand-made data set has no other split
        ]

    def run(self, url: str, *more: object) -> int:
        return command.main([str(a) for a in (*self.arguments, "--base-url", url, *more)])

    def start(self, url: str, *more: object) -> subprocess.Popen:
        line = [sys.executable, "training_data_construction/seed_cot_generation.py", *self.arguments]
        line += ["--base-url", url, *more]
        return subprocess.Popen(
            [str(a) for a in line], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def records(self) -> list[dict]:
        return json.loads(self.output.read_text())

    def journal(self) -> list[dict]:
        return list(read_journal(self.output.with_name("cot.json.journal.jsonl")))

    def rejects(self) -> list[dict]:
        return list(read_journal(self.output.with_name("cot.json.rejects.jsonl")))


@pytest.fixture
def make_job(hand_made, tmp_path):
    return lambda count=2: Job(hand_made, tmp_path, count)


def test_records_in_the_order_of_the_data_set(make_job, capsys):
    job, server = make_job(5), ChatServer(lambda asked: Act(delay=0.01 * (7 - asked.arrival)))
    with server.serve() as url:
        assert job.run(url, "--price-in", 2, "--price-out", 10) == 0
    dataset = ReVOS(job.root, split="valid")
    records = list(read_records(job.output, dataset))
    assert [record.sample.exp_id for record in records] == ["0", "1", "3", "4", "5"]  # 2 has no target
    assert {record.thinking for record in records} == {TEXT}
    out = capsys.readouterr().out
    assert "5 of 6 expressions (1 absent target)" in out
    assert "5  answers paid for: 500 prompt and 50 completion tokens, cost 0.00" in out
    by_expression = {asked.expression: asked for asked in server.asked}
    for record in records:
        asked = by_expression[record.sample.expression]
        assert asked.keyframe == record.answer.keyframe
        assert [part["text"] for part in asked.parts[:-1:2]] == [f"({t}s)" for t in record.clip.frame_ids]
        assert all(part["image_url"]["url"].startswith("data:image/jpeg") for part in asked.parts[1::2])
    assert job.rejects() == []
    with ChatServer().serve() as url:
        before = job.output.read_bytes()
        assert job.run(url) == 0  # nothing left to ask
    assert job.output.read_bytes() == before


def test_requests_in_flight_are_many_but_bounded(make_job):
    job, server = make_job(40), ChatServer(lambda asked: Act(delay=0.3))
    with server.serve() as url:
        assert job.run(url, "--concurrency", 8) == 0
    assert len(server.asked) == len(job.records()) == 40
    assert server.max_in_flight == 8


def test_a_target_in_no_frame_is_skipped(make_job, hand_made, capsys):
    hand_made.mask_dict["9000000001"] = [None] * 4
    job, server = make_job(3), ChatServer()
    with server.serve() as url:
        assert job.run(url) == 0
        assert job.run(url) == 0
    assert [record["exp_id"] for record in job.records()] == ["1"]  # of its two objects one is there
    assert len(server.asked) == 1
    assert "2  have their target in no frame" in capsys.readouterr().out


def test_an_unfit_reply_is_asked_again_with_another_seed(make_job):
    def script(asked):
        if asked.expression == "the square":
            return Act(completion("The red box shows it."))
        return Act(completion(TEXT, finish="length")) if asked.arrival < 2 else Act()

    job, server = make_job(3), ChatServer(script)
    with server.serve() as url:
        assert job.run(url, "--max-retries", 3, "--concurrency", 1) == 0
    assert [record["exp_id"] for record in job.records()] == ["1", "3"]
    (reject,) = job.rejects()
    assert (reject["key"], reject["reason"], reject["answers"]) == ("UVO/-a_b/0", "mentions_boxes", 4)
    assert reject["text"] == "The red box shows it."
    seeds = [asked.body["seed"] for asked in server.asked if asked.expression == "the square"]
    assert len(seeds) == len(set(seeds)) == 4
    good = ChatServer()
    with good.serve() as url:
        assert job.run(url, "--max-retries", 3) == 0
        assert len(good.asked) == 0  # a reject is settled
        assert job.run(url, "--max-retries", 4) == 0  # unless there may be one more
    assert len(job.records()) == 3
    assert job.rejects() == []


def test_a_teachers_own_thinking_is_left_out(make_job):
    thoughts = ["I look.\n</think>\n\n", "<think>A</think> or <think>B</think>", "<thinking>I look.</thinking>"]
    job = make_job(4)
    server = ChatServer(lambda asked: Act(completion(thoughts[asked.arrival % 3] + TEXT)))
    with server.serve() as url:
        assert job.run(url, "--concurrency", 1) == 0
    assert [record["CoT"] for record in job.records()] == [TEXT] * 4
    assert len(server.asked) == 4
    assert job.rejects() == []


@pytest.mark.parametrize(("act", "reason"), [
    (Act(completion("It is <answer>there</answer>.")), "holds tags of the reply format"),
    (Act(completion("I look.</think>")), "nothing but the teacher's own thinking; .*reasoning parser"),
    (Act(json.dumps({"choices": [{"message": {"content": None, "reasoning": "I look."}}]}).encode()),
     "nothing but the teacher's own thinking; .*reasoning parser"),
    (Act(completion("")), "the reply is empty"),
])  # fmt: skip
def test_answers_unfit_for_one_reason_from_the_first_on_stop_the_run(make_job, act, reason):
    job, server = make_job(40), ChatServer(lambda asked: act)
    with server.serve() as url, pytest.raises(DataError, match=f"first 20 answers are all unusable.*{reason}"):
        job.run(url, "--concurrency", 1, "--max-retries", 3)
    assert len(server.asked) == 20
    assert len(job.journal()) == 1 + 20  # paid for, and kept
    good = ChatServer()
    with good.serve() as url:
        assert job.run(url, "--concurrency", 1, "--max-retries", 4) == 0  # the server was put right
    assert len(job.records()) == 40


def test_a_run_without_any_fit_answer_says_so(make_job, capsys):
    job = make_job(3)
    with ChatServer(lambda asked: Act(completion("The red box shows it."))).serve() as url:
        assert job.run(url, "--max-retries", 1) == 1
    assert "no answer was usable" in capsys.readouterr().out
    assert job.records() == []


def test_other_masks_or_frames_under_the_same_path_are_other_data(make_job, hand_made, capsys):
    job = make_job(3)
    with ChatServer().serve() as url:
        assert job.run(url) == 0
        square, dot = hand_made.mask_dict.values()
        text = (job.root / "mask_dict.json").read_text()
        hand_made.mask_dict = {"9000000001": square[::-1], "9000000002": dot}
        hand_made.write()
        assert len((job.root / "mask_dict.json").read_text()) == len(text)
        with pytest.raises(DataError, match=r"answers about other data: the masks changed.*--accept-changed-inputs"):
            job.run(url)
        (job.root / "mask_dict.json").write_text(text)
        assert job.run(url) == 0
        frame = hand_made.frame("00005")
        os.utime(frame, ns=(0, 10**9))  # an older one
        with pytest.raises(DataError, match=r"other data: the frames of UVO/-a_b changed"):
            job.run(url)
        assert job.run(url, "--accept-changed-inputs") == 0
        assert job.run(url) == 0  # once accepted, it is what the journal knows


def test_a_journal_that_knows_no_inputs_is_gone_on_with(make_job):
    job = make_job(3)
    path = job.output.with_name("cot.json.journal.jsonl")
    with (server := ChatServer()).serve() as url:
        assert job.run(url, "--limit", 1) == 0
        first, *others = path.read_text().splitlines(keepends=True)
        path.write_text(json.dumps({"settings": json.loads(first)["settings"]}) + "\n" + "".join(others))
        assert job.run(url) == 0
    assert len(server.asked) == len(job.records()) == 3


def test_no_part_of_a_key_is_kept_or_printed(make_job, monkeypatch, capsys):
    key = "sk-abcdefghijklmnopqrstuvwx"
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}\n")
    body = json.dumps({"error": {"message": f"{key[:9]}... is bad, {key[:4]}****{key[-4:]}"}}).encode()
    job, server = make_job(3), ChatServer(lambda asked: Act(body, 400))
    with server.serve() as url:
        assert job.run(url) == 1
    assert server.asked[0].headers["authorization"] == f"Bearer {key}"
    printed = capsys.readouterr()
    texts = [printed.out, printed.err, *(path.read_text() for path in job.output.parent.glob("cot.json*"))]
    for start in range(3, len(key) - 3):
        assert not any(key[start : start + 4] in text for text in texts)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abcdefgh\nijklmnop")
    with pytest.raises(DataError, match=r"^OPENAI_API_KEY: holds a line end"):
        job.run("http://127.0.0.1:9/v1")


def test_a_second_run_into_the_same_output_is_refused(make_job):
    job = make_job(3)
    caught = []

    def script(asked):
        if not caught:
            caught.append(job.start(url, "--no-resume").communicate(timeout=600)[1])
        return Act()

    with ChatServer(script).serve() as url:
        assert job.run(url, "--concurrency", 1, "--max-retries", 2) == 0
    error = caught[0].splitlines()[-1]  # after the warning of a scored split
    assert error.startswith("error: ")
    assert "another process is writing here" in error
    assert "Traceback" not in caught[0]
    assert len(job.records()) == 3


def test_a_pipe_as_an_input_does_not_hang(make_job, tmp_path):
    job, pipe = make_job(), tmp_path / "pipe"
    os.mkfifo(pipe)
    for name in ("--meta_json", "--mask_dict", "--exclude", "--prompt-template"):
        with pytest.raises(DataError, match=r"no regular file \(a pipe"):
            job.run("http://127.0.0.1:9/v1", name, pipe)


def test_every_record_arrives_from_a_faulty_server(make_job):
    def script(asked):
        rng = Random(asked.arrival)
        if rng.random() >= 0.4:
            return Act()
        return rng.choice(
            [
                Act(status=500),
                Act(status=503),
                Act(status=429, headers={"Retry-After": "0"}),
                Act(ending="reset"),
                Act(ending="cut"),
                Act(body=completion()[:40]),
                Act(completion("")),
                Act(completion("as the red boxes show")),
                Act(delay=60),
            ]
        )

    job, server = make_job(60), ChatServer(script)
    with server.serve() as url:
        assert job.run(url, "--timeout", 3, "--concurrency", 16, "--max-retries", 20) == 0
    assert len(job.records()) == 60
    assert {record["CoT"] for record in job.records()} == {TEXT}


def test_failures_are_told_and_asked_again_by_the_next_run(make_job, capsys):
    job = make_job(3)
    with ChatServer(lambda asked: Act(status=400) if asked.expression == "the square" else Act()).serve() as url:
        assert job.run(url) == 1
    assert len(job.records()) == 2
    assert [(reject["key"], reject["reason"]) for reject in job.rejects()] == [("UVO/-a_b/0", "no_answer")]
    assert "1  got no answer" in capsys.readouterr().out
    with (server := ChatServer()).serve() as url:
        assert job.run(url) == 0
    assert len(server.asked) == 1
    assert len(job.records()) == 3
    assert job.rejects() == []


def test_a_server_that_is_down_ends_the_run(make_job):
    job, server = make_job(40), ChatServer(lambda asked: Act(status=500))
    with server.serve() as url, pytest.raises(DataError, match=r"20 samples in a row got no answer.*HTTP 500"):
        job.run(url, "--max-retries", 0, "--concurrency", 1)
    assert len(server.asked) == cot_run.GIVE_UP_AFTER
    assert not job.output.exists()


def test_a_bad_key_stops_at_once_and_what_was_paid_for_is_kept(make_job, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    slow = Act(delay=1.5)
    job, server = make_job(30), ChatServer(lambda asked: Act(status=401, delay=0.5) if asked.arrival == 3 else slow)
    with server.serve() as url, pytest.raises(DataError, match="does not accept the key") as error:
        job.run(url, "--concurrency", 4)
    assert "secret" not in str(error.value)
    assert len(server.asked) == 4
    assert len(job.journal()) == 1 + 3  # the answers that were on their way
    assert all("sk-secret" not in path.read_text() for path in job.output.parent.glob("cot.json*"))


def test_a_broken_frame_stops_the_run_and_is_named(make_job, hand_made):
    job = make_job(3)
    hand_made.frame("00010").unlink()
    with ChatServer().serve() as url, pytest.raises(DataError, match=r"00010\.jpg: the frame is missing"):
        job.run(url)


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_doubled(make_job):
    job, server = make_job(60), ChatServer(lambda asked: Act(delay=0.2))
    rng, path = Random(5), job.output.with_name("cot.json.journal.jsonl")
    with server.serve() as url:
        for goal in (8, 20, 35):  # lines of the journal
            process = job.start(url, "--concurrency", 4)
            wait_for(lambda goal=goal: path.exists() and path.read_bytes().count(b"\n") >= goal, process)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.wait()
            workers_end(job)
        with open(path, "ab") as file:
            file.write(b'{"kind": "record", "key": "UVO/')  # as a kill amid a write leaves it
        answered = {line["key"] for line in job.journal()[1:]}
        asked_before = len(server.asked)
        assert job.run(url, "--concurrency", 4) == 0
        asked = {asked.expression for asked in server.asked[asked_before:]}
    assert len(asked) == len(server.asked) - asked_before == 60 - len(answered)
    assert [record["exp_id"] for record in job.records()] == ["0", "1", *(str(i) for i in range(3, 61))]
    keys = [line["key"] for line in job.journal()[1:]]
    assert len(keys) == len(set(keys)) == 60


def wait_for(condition, process: subprocess.Popen, *, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def workers_end(job: Job) -> None:
    """The workers of a killed run notice and leave."""
    for _ in range(500):
        if not any(str(job.output).encode() in line for line in command_lines()):
            return
        time.sleep(0.02)
    raise AssertionError("a worker outlived its parent")


def command_lines() -> list[bytes]:
    return [line for path in Path("/proc").glob("[0-9]*/cmdline") if (line := _read(path))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_the_answers_on_their_way(make_job, number):
    job, server = make_job(30), ChatServer(lambda asked: Act(delay=1.0))
    with server.serve() as url:
        process = job.start(url, "--concurrency", 4)
        wait_for(lambda: len(server.asked) >= 6, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number  # as any command
    assert "stopping: waiting for the answers" in errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert len(job.journal()) - 1 == len(server.asked) == server.answered
    assert not job.output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_stop_leaves_at_once(make_job, number):
    job, server = make_job(30), ChatServer(lambda asked: Act(delay=600))
    with server.serve() as url:
        process = job.start(url, "--concurrency", 4)
        wait_for(lambda: len(server.asked) >= 4, process)
        process.send_signal(number)
        assert any("stopping" in line for line in process.stderr)  # reads no further than that line
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors


def test_a_dry_run_sends_nothing(make_job):
    job = make_job()
    assert command.main([str(a) for a in (*job.arguments, "--dry-run")]) == 0
    text = job.output.with_name("cot.json.dry_run.txt").read_text()
    assert "\nExpression: the square\n" in text
    assert text.count("<picture>") == 4
    assert job.output.with_name("cot.json.dry_run.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(job.output.parent)) == ["cot.json.dry_run.png", "cot.json.dry_run.txt", "root"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no server to ask"),
        (["--base-url", "https://teacher.example/v1"], "set OPENAI_API_KEY"),
        (["--base-url", "nonsense"], "no http"),
        (["--model-size", "500"], "use 504x504"),
        (["--mask_dict", "nowhere.json"], r"nowhere\.json: no such file"),
        (["--data_path", "nowhere"], "nowhere: no such folder"),
        (["--exclude", "nowhere"], "nowhere: no such file"),
    ],
)
def test_what_the_user_can_put_right(make_job, more, message):
    job = make_job()
    with pytest.raises(DataError, match=message):
        command.main([str(a) for a in (*job.arguments, *more)])


def test_limits_and_exclusions(make_job, tmp_path):
    job, server = make_job(6), ChatServer()
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("# too dark\nUVO/-a_b/1\n")
    with server.serve() as url:
        assert job.run(url, "--exclude", exclude, "--limit", 2) == 0
        assert [record["exp_id"] for record in job.records()] == ["0", "3"]
        assert job.run(url, "--exclude", exclude, "--limit", 4) == 0  # a first try is no waste
        assert [record["exp_id"] for record in job.records()] == ["0", "3", "4", "5"]
        assert len(server.asked) == 4
        with pytest.raises(DataError, match="exclude: "):
            job.run(url)


@pytest.mark.slow
def test_both_ways_to_call_it_and_dashes(make_job):
    job = make_job()
    arguments = [str(a).replace("_", "-") if str(a).startswith("--") else str(a) for a in job.arguments]
    for line in (
        ["training_data_construction/seed_cot_generation.py"],
        ["-m", "training_data_construction.seed_cot_generation"],
    ):
        done = subprocess.run(
            [sys.executable, *line, *arguments, "--dry-run"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "nothing was sent" in done.stdout
        done = subprocess.run([sys.executable, *line, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: no server to ask")


@pytest.mark.slow
def test_the_synthetic_world_s_own_teacher(tmp_path):
    """Seed to records with the real pieces: the world's teacher fails a fifth of the time."""
    teacher, world = pytest.importorskip("demo.teacher"), tmp_path / "world"
    build_world(world, videos=4, seed=7, policy=False)
    kinds = ("500", "503", "reset", "cut", "truncated", "empty", "length", "boxes")
    output = tmp_path / "cot.json"
    with teacher.serve(world, fail_rate=0.2, fail_kinds=kinds) as url:
        arguments = ["--meta_json", world / "meta_expressions_train_.json", "--mask_dict", world / "mask_dict.json"]
        arguments += ["--data_path", world / "JPEGImages", "--output_json", output, "--num_workers", "1"]
        assert command.main([str(a) for a in (*arguments, "--base-url", url, "--model", "synthetic-teacher")]) == 0
    dataset = ReVOS(world, split="train")
    records = list(read_records(output, dataset))
    assert len(records) > 20
    assert (tmp_path / "cot.json.rejects.jsonl").read_text() == ""
