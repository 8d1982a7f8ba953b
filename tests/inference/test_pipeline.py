"""The order of things: batches, threads, failures, and the run folder that survives them."""

import json
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from inference import pipeline
from inference.output import RunFolder, Shard
from inference.pipeline import Sampling
from inference.policies.oracle import OraclePolicy
from veason import masks
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.family import QWEN2_5_VL
from veason.frames import VideoFrames
from veason.trackers import open_tracker
from veason.types import MaskTrack

SAMPLING = Sampling(n=3, size=(56, 56))


@pytest.fixture
def dataset(hand_made):
    return open_dataset("revos", hand_made.write(), split="valid")


class Spy:
    """A policy that remembers what it was asked and replies as told."""

    name, family, looks = "spy", QWEN2_5_VL, True

    def __init__(self, reply="no idea"):
        self.reply, self.asked = reply, []

    def choose_clip(self, sample):
        return None

    def answer(self, questions, *, seed):
        self.asked.append(([question.sample.key for question in questions], seed))
        return [self.reply for _ in questions]


def run(samples, policy, **options):
    options = {"tracker": open_tracker("grabcut"), "sampling": SAMPLING, **options}
    return list(pipeline.run(samples, policy=policy, **options))


def test_a_reply_without_an_answer_gives_empty_masks_and_the_reason(dataset):
    (finished,) = run([dataset[0]], Spy("no idea"))
    prediction = finished.prediction
    assert (prediction.keyframe, prediction.boxes, prediction.reply.problem) == (None, (), "no_answer")
    assert [mask.any() for mask in masks.track_unions(prediction.track)] == [False] * 4


def test_boxes_go_from_model_to_video_pixels(dataset):
    reply = '<think>x</think><answer>{"keyframe_timestamp": 1, "bbox_2d_list": [[14, 28, 28, 42]]}</answer>'
    (finished,) = run([dataset[0]], Spy(reply))
    assert finished.prediction.boxes == ((16, 24, 32, 36),)  # x * 64 / 56, y * 48 / 56
    assert finished.prediction.keyframe == 1


def test_the_oracle_with_grabcut_finds_the_square(dataset, hand_made):
    (finished,) = run([dataset[0]], OraclePolicy(dataset))
    truth = dataset.object_rles(dataset[0])[0]
    overlap = [
        masks.iou(masks.track_union(finished.prediction.track, t), masks.decode(truth[t], (48, 64))) for t in range(4)
    ]
    assert min(overlap) > 0.7


def test_the_policy_sees_the_clip_at_model_size(dataset):
    seen = []

    class Looker(Spy):
        def answer(self, questions, *, seed):
            seen.extend(questions)
            return super().answer(questions, seed=seed)

    run(list(dataset), Looker(), batch_size=2)
    assert [question.clip.frame_ids for question in seen] == [(0, 1, 3)] * 3
    assert {image.shape for question in seen for image in question.images} == {(56, 56, 3)}
    red = seen[0].images[2][25 * 56 // 48, 33 * 56 // 64]  # the square in frame 3, around (33, 25)
    assert red[0] > 180
    assert red[2] < 80


def test_a_resumed_run_asks_the_same_batches_with_the_same_seeds(dataset):
    samples = [replace(dataset[0], exp_id=str(i)) for i in range(7)]
    whole, rest = Spy(), Spy()
    run(samples, whole, batch_size=3, seed=5)
    finished = run(samples, rest, batch_size=3, seed=5, done={s.key for s in samples[:4]})
    assert rest.asked == whole.asked[1:]
    assert [item.prediction.sample.exp_id for item in finished] == ["4", "5", "6"]


def test_frames_are_encoded_once_for_all_expressions_of_a_video(dataset, monkeypatch):
    tracker = open_tracker("grabcut")
    calls = []
    encode = tracker.encode
    monkeypatch.setattr(tracker, "encode", lambda frames: calls.append(len(frames)) or encode(frames))
    run([dataset[0], dataset[1], dataset[2]], OraclePolicy(dataset), tracker=tracker)
    assert calls == [4]


def test_what_came_before_a_broken_frame_is_finished_first(dataset, hand_made):
    other = hand_made.frame("00000").parent.parent / "other"
    other.mkdir()
    samples = [dataset[0], dataset[1], replace(dataset[0], video="UVO/other", frame_dir=other)]
    finished = []
    with pytest.raises(DataError, match=r"other/00000\.jpg: the frame is missing") as error:
        finished.extend(
            pipeline.run(samples, policy=Spy(), tracker=open_tracker("grabcut"), sampling=SAMPLING, batch_size=1)
        )
    assert "UVO/other" in str(error.value)


def test_a_broken_frame_in_tracking_stops_the_run_in_order(dataset, hand_made):
    """The policy does not look at frame 2, the tracker does: what was finished before it comes out, nothing after."""
    hand_made.frame("00010").write_bytes(b"not a picture")
    steps = pipeline.run(
        [dataset[2], dataset[0], dataset[2]],
        policy=OraclePolicy(dataset),
        tracker=open_tracker("grabcut"),
        sampling=SAMPLING,
    )
    assert next(steps).prediction.sample.exp_id == "2"  # no target, so no tracking
    with pytest.raises(DataError, match=r"00010\.jpg: the picture cannot be decoded") as error:
        next(steps)
    assert error.value.__notes__ == ["while predicting UVO/-a_b/0"]


def folder(path, samples, shard=None, **settings):
    return RunFolder(path, shard=shard or Shard(), samples=samples, record={"settings": settings, "versions": {}})


def predict_into(path, dataset, samples, shard=None):
    with folder(path, samples, shard) as out:
        for item in run(out.samples, OraclePolicy(dataset), done=frozenset(out.done)):
            out.write(item)
        return out.join()


def tree(path):
    """Everything that must not depend on how a run went."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and "Annotations" in p.parts)
    kept = {str(p.relative_to(path)): p.read_bytes() for p in [*files, path / "predictions.jsonl"]}
    assert not [p for p in path.iterdir() if p.name.startswith(".partial")]
    return kept


def test_masks_are_8_bit_0_and_255_one_for_each_frame(dataset, tmp_path):
    assert predict_into(tmp_path / "run", dataset, list(dataset))
    pictures = sorted((tmp_path / "run" / "Annotations" / "UVO" / "-a_b" / "0").iterdir())
    assert [p.name for p in pictures] == ["00000.png", "00005.png", "00010.png", "00015.png"]
    mask = cv2.imread(str(pictures[0]), cv2.IMREAD_UNCHANGED)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((48, 64), np.uint8, {0, 255})
    record = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert record["boxes"] == [pytest.approx([4, 20, 13, 29], abs=0.02)]
    assert (record["keyframe"], record["frame_ids"], record["problem"]) == (0, [0, 1, 3], None)


@pytest.mark.parametrize("half", ["no line", "half a line", "masks only", "a stray partial folder"])
def test_a_killed_run_goes_on_where_it_was(dataset, tmp_path, half):
    samples = list(dataset)
    predict_into(tmp_path / "whole", dataset, samples)
    path = tmp_path / "killed"
    with folder(path, samples) as out:
        for item in run(samples[:2], OraclePolicy(dataset)):
            out.write(item)
    lines = (path / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    if half == "no line":
        (path / "predictions.jsonl").write_bytes(lines[0])
    elif half == "half a line":
        (path / "predictions.jsonl").write_bytes(lines[0] + lines[1][:40])
    elif half == "masks only":
        (path / "predictions.jsonl").unlink()
        next((path / "Annotations").rglob("*.png")).write_bytes(b"torn")
    else:
        (path / ".partial-0" / "0").mkdir(parents=True)
        (path / ".partial-0" / "0" / "00000.png").write_bytes(b"torn")
    predict_into(path, dataset, samples)
    assert tree(path) == tree(tmp_path / "whole")


def test_shards_join_into_the_same_run(dataset, tmp_path):
    base = list(dataset)
    samples = [replace(s, video=f"v{v}") for v in range(3) for s in base[:2]]
    predict_into(tmp_path / "whole", dataset, samples)
    joined = [predict_into(tmp_path / "parts", dataset, samples, Shard(i, 2)) for i in (1, 0)]
    assert joined == [False, True]
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_a_shard_takes_whole_videos(dataset):
    samples = [replace(dataset[0], video=f"v{v}", exp_id=str(e)) for v in range(5) for e in range(2)]
    parts = [Shard(i, 3).take(samples) for i in range(3)]
    assert [[s.key for s in part] for part in parts] == [
        ["v0/0", "v0/1", "v3/0", "v3/1"],
        ["v1/0", "v1/1", "v4/0", "v4/1"],
        ["v2/0", "v2/1"],
    ]


def test_a_folder_of_another_run_is_refused(dataset, tmp_path):
    with folder(tmp_path / "run", list(dataset), policy="oracle"):
        pass
    with pytest.raises(DataError, match="policy: oracle there, hf now"), folder(tmp_path / "run", [], policy="hf"):
        pass


def test_two_processes_cannot_write_one_shard(dataset, tmp_path):
    samples = list(dataset)
    with (
        folder(tmp_path / "run", samples),
        pytest.raises(DataError, match="another process"),
        folder(tmp_path / "run", samples),
    ):
        pass


def test_a_full_disk_keeps_what_is_finished(dataset, tmp_path):
    samples = list(dataset)
    items = run(samples, OraclePolicy(dataset))
    with folder(tmp_path / "run", samples) as out:
        out.write(items[0])
        out._journals["timings"]._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - no write finds space
        with pytest.raises(DataError, match="no space left while writing UVO/-a_b/1; free some and run the same"):
            out.write(items[1])
    with folder(tmp_path / "run", samples) as out:
        assert out.done == {samples[0].key}


def test_decoding_policy_and_tracking_overlap(dataset):
    """Each stage waits for another one to be under way: taken in turn they would wait in vain."""
    second_answer, second_decoded = threading.Event(), threading.Event()
    samples = [replace(dataset[0], video=f"v{i}") for i in range(3)]
    reply = '<think>x</think><answer>{"keyframe_timestamp": 1, "bbox_2d_list": [[14, 28, 28, 42]]}</answer>'

    class Waiting(Spy):
        def answer(self, questions, *, seed):
            if self.asked:
                second_answer.set()
            else:
                assert second_decoded.wait(30), "the second clip was not decoded beside the first answer"
            return super().answer(questions, seed=seed)

    class WaitingTracker:
        name = "waiting"

        def encode(self, frames):
            return None

        def track(self, encoded, *, keyframe, boxes):
            assert second_answer.wait(30), "the policy did not answer beside tracking"
            return MaskTrack.empty((48, 64), 4)

    def open_frames(sample):
        if sample.video == "v1":
            second_decoded.set()
        return VideoFrames(dataset[0])

    finished = run(samples, Waiting(reply), tracker=WaitingTracker(), open_frames=open_frames)
    assert [item.prediction.sample.video for item in finished] == ["v0", "v1", "v2"]


def test_many_questions_at_once_come_out_in_order(dataset):
    """The first waits for the last of the window: asked in turn they would wait in vain."""
    samples = [replace(dataset[0], exp_id=str(i)) for i in range(9)]
    third = threading.Event()

    class Server(Spy):
        def answer(self, questions, *, seed):
            key = questions[0].sample.exp_id
            if key == "0":
                assert third.wait(60), "the third question was not asked beside the first"
            if key == "2":
                third.set()
            return [f"about {key}"]

    asked = pipeline.ask(pipeline.cut(samples, 1), policy=Server(), sampling=SAMPLING, in_flight=3)
    assert [item.text for items in asked for item in items] == [f"about {i}" for i in range(9)]


def test_who_stops_asking_does_not_wait_for_the_answers_in_flight(dataset):
    samples = [replace(dataset[0], exp_id=str(i)) for i in range(9)]
    cancelled, unanswered = threading.Event(), []

    class Server(Spy):
        def answer(self, questions, *, seed):
            key = questions[0].sample.exp_id
            if key != "0" and not cancelled.wait(10):
                unanswered.append(key)
            return [f"about {key}"]

        def cancel(self):
            cancelled.set()

    asked = pipeline.ask(pipeline.cut(samples, 1), policy=Server(), sampling=SAMPLING, in_flight=2)
    assert next(asked)[0].text == "about 0"
    asked.close()
    assert cancelled.is_set()
    assert unanswered == []


def test_what_the_others_in_flight_brought_comes_out_before_the_failure(dataset):
    samples = [replace(dataset[0], exp_id=str(i)) for i in range(12)]
    failed = threading.Event()

    class Server(Spy):
        def answer(self, questions, *, seed):
            key = questions[0].sample.exp_id
            if key == "1":
                failed.set()
                raise DataError("1: no answer")
            assert failed.wait(60)
            return [f"about {key}"]

    came = []
    steps = pipeline.run(samples, policy=Server(), tracker=open_tracker("grabcut"), sampling=SAMPLING, in_flight=3)
    with pytest.raises(DataError, match="1: no answer"):
        came.extend(item.prediction.reply.text for item in steps)
    # 6 are handed out before the first is waited for; the failure is met with the second, when 7 are
    assert came == ["about 0", *(f"about {i}" for i in range(2, 7))]


def test_a_broken_frame_among_many_questions_keeps_the_others(dataset, hand_made):
    other = hand_made.frame("00000").parent.parent / "other"
    other.mkdir()
    samples = [dataset[0], dataset[1], replace(dataset[0], video="UVO/other", frame_dir=other), dataset[2]]
    came, asked = [], pipeline.ask(pipeline.cut(samples, 1), policy=Spy(), sampling=SAMPLING, in_flight=4)
    with pytest.raises(DataError, match=r"other/00000\.jpg: the frame is missing"):
        came.extend(item.question.sample.exp_id for items in asked for item in items)
    assert came == ["0", "1"]


def test_policy_and_tracker_get_half_of_the_threads_each(dataset):
    torch = pytest.importorskip("torch")
    before, seen = torch.get_num_threads(), []

    class Counting(Spy):
        def answer(self, questions, *, seed):
            seen.append(torch.get_num_threads())
            return super().answer(questions, seed=seed)

    torch.set_num_threads(6)
    try:
        run([dataset[0]], Counting())
        assert (seen, torch.get_num_threads()) == ([3], 6)
    finally:
        torch.set_num_threads(before)


def test_what_is_tracked_is_encoded_and_written_on_a_thread_of_its_own(dataset):
    """The policy's thread waits for neither: it answers again while the first prediction is still being stored."""
    answering, storing, stored, second = [], [], [], threading.Event()

    class Asked(Spy):
        def answer(self, questions, *, seed):
            answering.append(threading.get_ident())
            if len(answering) == 2:
                second.set()
            return super().answer(questions, seed=seed)

    def store(finished):
        assert second.wait(30), "the policy waited until the first prediction was stored"
        storing.append(threading.get_ident())
        stored.append(finished.prediction.sample.exp_id)

    came = run([dataset[0], dataset[1]], Asked(), then=store)
    assert [finished.prediction.sample.exp_id for finished in came] == stored == ["0", "1"]
    assert set(answering).isdisjoint(storing)
    assert len(set(storing)) == 1


def test_a_failure_to_store_ends_the_run(dataset):
    def full(finished):
        raise DataError("no space left")

    with pytest.raises(DataError, match="no space left"):
        run([dataset[0], dataset[1]], Spy(), then=full)
