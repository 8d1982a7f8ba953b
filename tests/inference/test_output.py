"""The run folder: any order in, the data set's order out; PNGs of 8 bits or 1, or lines of RLEs."""

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from inference import pipeline, run_record
from inference.output import MASKS, RunFolder, Shard, pack, png_damage
from inference.pipeline import Sampling
from inference.policies.oracle import OraclePolicy
from veason import atomic, mask_lines, mask_png, masks
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.trackers import open_tracker


@pytest.fixture
def dataset(hand_made):
    return open_dataset("revos", hand_made.write(), split="valid")


@pytest.fixture
def finished(dataset):
    """Two videos of three expressions each, the second one the first by another name."""
    samples = [replace(s, video=video) for video in ("UVO/-a_b", "b") for s in dataset]
    done = pipeline.run(
        list(dataset), policy=OraclePolicy(dataset), tracker=open_tracker("grabcut"), sampling=Sampling(3, (56, 56))
    )
    by_exp = {item.prediction.sample.exp_id: item for item in done}
    return [replace(by_exp[s.exp_id], prediction=replace(by_exp[s.exp_id].prediction, sample=s)) for s in samples]


def folder(path, finished, masks="png", shard=None):
    samples = [item.prediction.sample for item in finished]
    return RunFolder(
        path, shard=shard or Shard(), samples=samples, record={"settings": {}, "versions": {}}, masks=masks
    )


def write(path, finished, order, masks="png"):
    with folder(path, finished, masks) as out:
        for i in order:
            out.keep(pack(finished[i], masks=masks))
        return out.join()


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("masks", MASKS)
def test_any_order_gives_the_same_folder(finished, tmp_path, masks):
    assert write(tmp_path / "order", finished, range(6), masks)
    assert not write(tmp_path / "mixed", finished, [4, 0, 3], masks)
    assert write(tmp_path / "mixed", finished, [5, 2, 1], masks)
    assert contents(tmp_path / "mixed") == contents(tmp_path / "order")


def test_a_prefix_in_order_is_not_written_again(finished, tmp_path):
    """One process writes in order: the journal of a finished run is the very file."""
    with folder(tmp_path, finished) as out:
        before = (tmp_path / "predictions.jsonl").stat().st_ino
        for item in finished:
            out.write(item)
        out.join()
    assert (tmp_path / "predictions.jsonl").stat().st_ino == before


@pytest.mark.parametrize("masks", MASKS)
def test_a_sample_killed_between_its_lines_stands_once(finished, tmp_path, masks):
    write(tmp_path / "whole", finished, range(6), masks)
    write(tmp_path / "killed", finished, range(3), masks)
    path = tmp_path / "killed" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))  # masks and timing of the third are there, its line is not
    with folder(tmp_path / "killed", finished, masks) as out:
        assert out.done == {"UVO/-a_b/0", "UVO/-a_b/1"}
    assert write(tmp_path / "killed", finished, [5, 2, 3, 4], masks)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_shards_that_write_in_any_order_join(finished, tmp_path):
    write(tmp_path / "whole", finished, range(6), "rle")
    for index, order, whole in ((1, [5, 3, 4], False), (0, [2, 0, 1], True)):
        with folder(tmp_path / "parts", finished, "rle", Shard(index, 2)) as out:
            for i in order:
                out.write(finished[i])
            assert out.join() == whole
    for name in ("predictions", "timings", "masks"):
        assert (tmp_path / "parts" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "whole" / f"{name}.jsonl"
        ).read_bytes()


@pytest.mark.parametrize("bits", ["png", "png1"])
def test_pngs_read_back_as_0_and_255(finished, tmp_path, bits):
    write(tmp_path, finished, range(6), bits)
    for i in (0, 2):  # the square; the absent dog
        sample, track = finished[i].prediction.sample, finished[i].prediction.track
        data = (tmp_path / "Annotations" / sample.key / "00005.png").read_bytes()
        assert data[24] == (1 if bits == "png1" else 8)  # bit depth, in the IHDR chunk
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, masks.track_union(track, 1) * 255)


def test_lines_hold_the_same_masks(finished, tmp_path):
    write(tmp_path, finished, range(6), "rle")
    assert not (tmp_path / "Annotations").exists()
    lines = [json.loads(line) for line in (tmp_path / mask_lines.FILE).read_text().splitlines()]
    assert [(line["video"], line["exp_id"]) for line in lines] == [(v, e) for v in ("UVO/-a_b", "b") for e in "012"]
    assert lines[2]["counts"] == [None] * 4
    assert lines[0]["size"] == [48, 64]
    for line, item in zip(lines, finished, strict=True):
        parsed = mask_lines.parse(line, "here")
        for t, union in enumerate(masks.track_unions(item.prediction.track)):
            rle = parsed.rle(t)
            assert (rle is not None) == union.any()
            assert rle is None or np.array_equal(mask_lines.masks.decode(rle, (48, 64)), union)


@pytest.mark.parametrize("odd", ["another run's", "a double"])
def test_a_journal_of_something_else_is_refused(finished, tmp_path, odd):
    write(tmp_path, finished, [0, 1])
    path = tmp_path / "predictions.jsonl"
    line = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + (line.replace("UVO/-a_b", "c") if odd == "another run's" else line) + "\n")
    with pytest.raises(DataError, match="is not a sample of this run, or appears twice"), folder(tmp_path, finished):
        pass


def damage(path, how):
    """Cut the last line in half and take one from the middle, empty the file, or take it away."""
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:  # a block that never came to the disk, as after a power cut
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], b"\0" * 30 + b"\n", *lines[2:]]))


def complete(path, finished, masks, shards):
    """Make whatever is missing of a run, shard by shard; whether it is whole."""
    by_key = {item.prediction.sample.key: item for item in finished}
    made, whole = [], False
    for index in range(shards):
        with folder(path, finished, masks, Shard(index, shards)) as out:
            missing = [sample.key for sample in out.samples if sample.key not in out.done]
            for key in missing:
                out.keep(pack(by_key[key], masks=masks))
            made += missing
            whole = out.join()
    return made, whole


def joined(path):
    """A run folder but for the shards' own journals, whose lines are in the order in which they were made."""
    return {name: data for name, data in contents(path).items() if not name.startswith("shards")}


@pytest.mark.parametrize("how", ["cut", "empty", "gone", "zeros"])
@pytest.mark.parametrize(
    ("name", "masks"),
    [("predictions", "png"), ("timings", "png"), ("predictions", "rle"), ("timings", "rle"), ("masks", "rle")],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_damaged_journal_is_made_again(finished, tmp_path, caplog, shards, name, masks, how):
    """The journal of the first shard; what is joined of it is made new in any case."""
    assert complete(tmp_path, finished, masks, shards)[1]
    before = joined(tmp_path)
    journal = f"{name}.jsonl" if shards == 1 else f"shards/{name}-0-of-2.jsonl"
    damage(tmp_path / journal, how)
    made, whole = complete(tmp_path, finished, masks, shards)
    count = 6 // shards
    assert len(made) == {"cut": 1, "zeros": 1, "empty": count, "gone": count}[how]
    assert whole
    assert joined(tmp_path) == before
    told = caplog.text
    assert ("finished samples are made again" in told) == (name != "predictions" or how == "zeros")
    assert complete(tmp_path, finished, masks, shards) == ([], True)  # and for good


def flipped(data, position, bit=0):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def test_every_flipped_bit_of_a_picture_shows(finished, tmp_path):
    path = tmp_path / "mask.png"
    whole = mask_png.encode(masks.track_union(finished[0].prediction.track, 1))
    path.write_bytes(whole)
    assert png_damage(path, (48, 64)) is None
    for number in range(8 * len(whole)):
        path.write_bytes(flipped(whole, *divmod(number, 8)))
        assert png_damage(path, (48, 64)) is not None


def test_runs_that_do_not_cover_the_picture_are_made_again(finished, tmp_path, caplog):
    assert complete(tmp_path, finished, "rle", 1)[1]
    before = joined(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    lines[1]["counts"][1] = f"1{lines[1]['counts'][1]}"
    (tmp_path / "masks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert complete(tmp_path, finished, "rle", 1) == ([f"{lines[1]['video']}/{lines[1]['exp_id']}"], True)
    assert joined(tmp_path) == before
    assert "1 finished samples are made again" in caplog.text


@pytest.mark.parametrize("how", ["empty", "cut", "missing", "another size", "gone", "a flipped bit"])
@pytest.mark.parametrize("shards", [1, 2])
def test_damaged_pictures_are_made_again(finished, tmp_path, caplog, shards, how):
    assert complete(tmp_path, finished, "png", shards)[1]
    before = joined(tmp_path)
    picture = tmp_path / "Annotations" / "b" / "1" / "00010.png"
    if how == "gone":
        shutil.rmtree(tmp_path / "Annotations")
    elif how == "missing":
        picture.unlink()
    elif how == "another size":
        picture.write_bytes(mask_png.encode(np.zeros((4, 4), bool)))
    elif how == "a flipped bit":
        picture.write_bytes(flipped(picture.read_bytes(), len(picture.read_bytes()) // 2))
    else:
        picture.write_bytes(picture.read_bytes()[:-5] if how == "cut" else b"")
    made, whole = complete(tmp_path, finished, "png", shards)
    assert (len(made), whole) == (6 if how == "gone" else 1, True)
    assert joined(tmp_path) == before
    assert "made again" in caplog.text


def test_a_shard_is_not_told_to_complete_a_run_of_which_another_one_is_damaged(finished, tmp_path):
    complete(tmp_path, finished, "png", 2)
    (tmp_path / "Annotations" / "b" / "1" / "00010.png").write_bytes(b"")  # of shard 1
    with folder(tmp_path, finished, "png", Shard(0, 2)) as out:
        assert out.done == {f"UVO/-a_b/{i}" for i in range(3)}
        assert not out.join()


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(finished, tmp_path):
    complete(tmp_path, finished, "png", 1)
    picture = tmp_path / "Annotations" / "b" / "1" / "00010.png"
    picture.unlink()
    os.mkfifo(picture)
    assert complete(tmp_path, finished, "png", 1) == (["b/1"], True)
    (tmp_path / "timings.jsonl").unlink()
    os.mkfifo(tmp_path / "timings.jsonl")
    with pytest.raises(DataError, match=r"timings\.jsonl: no regular file"), folder(tmp_path, finished):
        pass


def test_a_line_comes_after_its_masks_are_on_the_disk(finished, tmp_path, monkeypatch):
    order = []
    with folder(tmp_path, finished) as out:
        append = out._journals["predictions"].append
        monkeypatch.setattr(atomic, "sync_filesystem", lambda path: order.append(sorted(tmp_path.rglob("*.png"))))
        monkeypatch.setattr(out._journals["predictions"], "append", lambda line: order.append("line") or append(line))
        out.write(finished[0])
    assert len(order[0]) == 4
    assert order[1] == "line"


@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("count", [1, 2])
def test_predictions_without_the_record_of_how_they_were_made_are_not_gone_on_with(finished, tmp_path, how, count):
    with folder(tmp_path, finished, shard=Shard(0, count)) as out:
        out.write(finished[0])
    before = contents(tmp_path)
    (tmp_path / "run.json").unlink()
    if how == "empty":
        (tmp_path / "run.json").touch()
    message = rf"run.json is {how}, so nothing says how predictions.*jsonl was made; put it back"
    with pytest.raises(DataError, match=message), folder(tmp_path, finished, shard=Shard(0, count)):
        pass
    (tmp_path / "run.json").write_bytes(before["run.json"])
    assert contents(tmp_path) == before


def test_a_folder_whose_record_could_not_be_written_begins_anew(finished, tmp_path):
    (tmp_path / "run.json").touch()
    assert write(tmp_path, finished, range(6))


def record(samples=3, **parts):
    settings = {"policy": "hf", "samples": samples, "limit": samples, **parts.pop("settings", {})}
    return {"settings": settings, "versions": {}, "inputs": {"data meta": 1}, **parts}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (record(inputs={"data meta": 2}), r"data meta: 1 there, 2 now.*put back what was there"),
        (record(inputs={"data meta": 1, "replay": {"bytes": 3}}), r'replay: None there, \{"bytes": 3\} now'),
        (record(settings={"policy": "vllm"}), "policy: hf there, vllm now.*choose another --output"),
        (record(settings={"reading": "lenient"}), "reading: strict there, lenient now"),
        (record(policy={"repetition_penalty": 1.05}), r"repetition_penalty: 1.0 there, 1.05 now.*ask it as before"),
        (record(samples=2), "holds a run of 3 samples, this one is of 2; raise --limit"),
    ],
)
def test_a_run_that_goes_on_has_the_inputs_of_before(tmp_path, now, message):
    path = tmp_path / "run.json"
    run_record.keep(path, record(policy={"repetition_penalty": 1.0}))
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        run_record.keep(path, now)
    assert path.read_bytes() == before


def test_what_may_change_takes_effect_and_the_settings_of_before_are_kept(tmp_path):
    path = tmp_path / "run.json"
    run_record.keep(path, record(versions={"torch": "1"}))
    run_record.keep(path, record(samples=9, versions={"torch": "2"}, policy={"model": "m"}))
    found = json.loads(path.read_text())
    assert (found["settings"]["limit"], found["policy"]) == (9, {"model": "m"})
    assert [earlier["limit"] for earlier in found["earlier_settings"]] == [3]
    assert (found["versions"], found["later_versions"]) == ({"torch": "1"}, [{"torch": "2"}])
    after = path.read_bytes()
    run_record.keep(path, record(samples=9, versions={"torch": "2"}))
    assert path.read_bytes() == after


def test_a_record_from_before_ground_truth_was_noted_gains_it_and_is_held_to_it(tmp_path):
    path = tmp_path / "run.json"
    run_record.keep(path, record())
    noted = {"data meta": 1, "data truth": {"files": 2}}
    run_record.keep(path, record(inputs=noted))
    assert json.loads(path.read_text())["inputs"] == noted
    with pytest.raises(DataError, match=r'data truth: \{"files": 2\} there, \{"files": 3\} now'):
        run_record.keep(path, record(inputs=noted | {"data truth": {"files": 3}}))


def test_every_input_of_a_run_has_a_fingerprint_that_tells_of_a_change(dataset, hand_made, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "sam.pt").write_bytes(b"sam")
    (tmp_path / "said.jsonl").write_text("{}\n")
    others = {"model": str(model), "tracker": ("a name", str(tmp_path / "sam.pt"))}

    def found():
        said = {"replay": str(tmp_path / "said.jsonl"), "template": "text"}
        return run_record.inputs(dataset, list(dataset), **others, **said)

    before = found()
    assert found() == before
    for path, name in [
        (model / "model.safetensors", "model model.safetensors"),
        (model / "config.json", "model config.json"),
        (tmp_path / "sam.pt", "tracker sam.pt"),
        (tmp_path / "said.jsonl", "replay"),
        (dataset.files["meta"], "data meta"),
        (dataset.files["masks"], "data masks"),
        (hand_made.frame("00010"), "frames"),
    ]:
        os.utime(path, (1, 1))  # another file that is older
        assert [key for key, value in found().items() if value != before[key]] == [name]
        before = found()
    assert run_record.inputs(dataset, [], template="other")["prompt"] != before["prompt"]
