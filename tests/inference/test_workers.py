"""Workers without Ray: they return the replies and tracks up to a failure, and failures as values."""

import argparse
import pickle

import pytest

from inference import options, predict, workers
from inference.workers import Job, PolicyWorker, TrackerWorker
from veason.datasets import open_dataset
from veason.errors import DataError
from verl.ray import Failure


@pytest.fixture(autouse=True)
def log_set_up(monkeypatch):
    """Records each set-up of a worker's log, which is not carried out, because this process outlives the worker."""
    calls: list[str] = []
    monkeypatch.setattr(workers, "set_up_logging", lambda: calls.append("set up"))
    return calls


@pytest.fixture
def job(hand_made, tmp_path):
    def make(*more: str) -> Job:
        root = str(hand_made.write())
        args = predict.build_parser().parse_args(["--data-root", root, "--output", str(tmp_path / "out"), *more])
        options.settle(args)
        dataset = open_dataset("revos", root, split="valid")
        return pickle.loads(pickle.dumps(Job(args, dataset, list(dataset))))

    return make


def test_a_unit_from_batches_to_what_is_written(job, log_set_up):
    asked, tracked = PolicyWorker(), TrackerWorker()
    assert asked.build(job("--batch-size", "2", "--masks", "rle"), 0) is None
    assert tracked.build(job("--masks", "rle"), 0) is None
    assert log_set_up == ["set up", "set up"]
    replies = pickle.loads(pickle.dumps(asked.answer((1, 0))))
    assert [reply.number for reply in replies.replies] == [2, 0, 1]
    assert replies.policy == {"name": "oracle"}
    assert replies.failure is None
    tracks = pickle.loads(pickle.dumps(tracked.track(replies.replies, replies.family)))
    assert [packed.key for packed in tracks.packed] == ["UVO/-a_b/2", "UVO/-a_b/0", "UVO/-a_b/1"]
    assert tracks.packed[0].masks["counts"] == [None] * 4
    assert tracks.packed[1].prediction["keyframe"] == 0
    assert len(pickle.dumps(tracks)) < 20_000  # no pixels travel


def test_a_broken_frame_comes_home_as_the_same_error_with_what_was_before(job, hand_made):
    asked, tracked = PolicyWorker(), TrackerWorker()
    asked.build(job(), 0)
    tracked.build(job(), 0)
    hand_made.frame("00010").write_bytes(b"not a picture")
    replies = asked.answer((2, 0)).replies
    tracks = pickle.loads(pickle.dumps(tracked.track(replies, asked.answer((0,)).family)))
    assert [packed.key for packed in tracks.packed] == ["UVO/-a_b/2"]  # without a target there is nothing to track
    error = tracks.failure.exception()
    assert isinstance(error, DataError)
    assert "00010.jpg: the picture cannot be decoded" in str(error)
    assert error.__notes__ == ["while predicting UVO/-a_b/0"]


def test_replies_before_a_broken_frame_are_kept(job, hand_made):
    """The policy must look for this: a recorded run's would not."""
    worker = PolicyWorker()
    worker.build(job(), 0)
    worker._policy.looks = True
    hand_made.frame("00000").unlink()
    replies = worker.answer((0,))
    assert replies.replies == []
    assert "the frame is missing" in str(replies.failure.exception())


def test_what_cannot_be_built_says_why(job):
    failure = PolicyWorker().build(job("--policy", "hf"), 0)
    assert isinstance(failure.exception(), DataError)
    assert "--policy hf needs --model" in failure.text


def test_an_error_of_ours_is_no_traceback_and_another_one_is():
    try:
        raise KeyError("odd")
    except KeyError as error:
        failure = Failure.of(error, user_error=DataError)
    assert isinstance(failure.exception(), RuntimeError)
    assert "test_workers.py" in str(failure.exception())
    assert str(Failure.of(DataError("clear"), user_error=DataError).exception()) == "clear"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "1", "--workers", "2"], "give one of them"),
        (["--workers", "0"], "at least 1, found 0"),
        (["--workers", "1", "--policy-gpus", "0.8"], "shares of one GPU, found 0.8 \\+ 0.3"),
        (["--workers", "1", "--tracker-gpus", "nan"], "shares of one GPU"),
    ],
)
def test_options_that_make_no_sense(arguments, message):
    parser = argparse.ArgumentParser()
    options.add_worker_options(parser)
    with pytest.raises(DataError, match=message):
        options.check_workers(parser.parse_args(arguments))
