"""Predictions as folders of PNGs, as our lines of RLEs, as Sa2VA's document: the same masks, the same scores."""

import json
import pickle

import cv2
import numpy as np
import pytest

from eval import predictions, revos
from eval.predictions import open_predictions
from veason import mask_lines, mask_png, masks
from veason.datasets import open_dataset
from veason.errors import DataError


def shifted(mask):
    return np.roll(mask, (2, 3), (0, 1))


def by_sample(world):
    """The samples of a world, each with its predicted masks: the targets, shifted."""
    for sample in open_dataset("revos", world.root, split="valid"):
        yield sample, [shifted(target != 0) for target in world.count(sample.video, sample.exp_id)]


def lines(world):
    return [mask_lines.record(sample, [masks.encode(m) for m in said]) for sample, said in by_sample(world)]


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def document(world):
    """Sa2VA's form: an RLE for every frame, also where the mask is empty."""
    found = {}
    for sample, said in by_sample(world):
        found.setdefault(sample.video, {})[sample.exp_id] = {"prediction_masks": [masks.encode(m) for m in said]}
    return found


@pytest.fixture
def stored(world, tmp_path):
    """The same prediction in five places."""
    world.predict(tmp_path / "bare", shifted)
    world.predict(tmp_path / "run" / "Annotations", shifted)
    for path in (tmp_path / "bare").rglob("*.png"):
        bilevel = tmp_path / "bilevel" / path.relative_to(tmp_path / "bare")
        bilevel.parent.mkdir(parents=True, exist_ok=True)
        bilevel.write_bytes(mask_png.encode(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), bits=1))
    write_lines(tmp_path / "lines" / "masks.jsonl", lines(world))
    (tmp_path / "sa2va.json").write_text(json.dumps(document(world)))
    return [tmp_path / name for name in ("bare", "run", "bilevel", "lines", "sa2va.json")]


def test_every_form_reads_alike_in_another_process_too(world, stored):
    opened = [pickle.loads(pickle.dumps(open_predictions(path))) for path in stored]
    count = 0
    for sample, said in by_sample(world):
        for t, expected in enumerate(said):
            for predicted in opened:
                mask = predicted.read(sample, t)
                assert (mask.dtype, mask.flags.c_contiguous) == (np.uint8, True)
                assert np.array_equal(mask, expected * np.uint8(255))
                count += 1
    assert count == 5 * (4 * 3 + 2 * 2)  # forms x (expressions x frames, of both videos)
    assert all(predicted.absence(sample) is None for sample, _ in by_sample(world) for predicted in opened)


def test_every_form_scores_alike(world, stored):
    texts = [revos.evaluate(world.root, path, workers=1 + (i == 3)).to_csv() for i, path in enumerate(stored)]
    assert len(set(texts)) == 1
    assert texts[0].count("\n") == 7


def test_rles_on_the_scale_of_sa2va(world, stored, tmp_path):
    """J and F do not depend on the value inside a mask, A and R do: an RLE of value 1 scores as a PNG of value 1."""
    ones = revos.evaluate(world.root, world.predict(tmp_path / "ones", shifted, value=1))
    rles = revos.evaluate(world.root, stored[-1], rle_value=1)
    usual = revos.evaluate(world.root, stored[-1])
    assert rles.rows == ones.rows != usual.rows
    assert [(row.j, row.f) for row in rles.rows] == [(row.j, row.f) for row in usual.rows]
    assert rles.protocol["prediction_values"] == {"0": 1, "0/1": 5}


def test_the_layout_says_where_a_sample_lies(world, tmp_path):
    world.predict(tmp_path / "p" / "v0", shifted)
    predicted = open_predictions(tmp_path / "p", layout=_below_v0)
    sample = next(s for s, _ in by_sample(world))
    assert predicted.absence(sample) is None
    assert predicted.read(sample, 0).any()
    assert "no folder UVO/all/-a_1 of the video" in open_predictions(tmp_path / "p").absence(sample)


def _below_v0(sample):
    return f"v0/{sample.key}"


def test_the_last_of_two_lines_counts_and_half_a_line_does_not(world, tmp_path):
    records = lines(world)
    empty = {**records[0], "counts": [None] * 3}
    path = write_lines(tmp_path / "masks.jsonl", [empty, *records])
    sample = next(s for s, _ in by_sample(world))
    assert open_predictions(path).read(sample, 0).any()
    with open(path, "a") as file:
        file.write(json.dumps(empty)[:-4])
    assert open_predictions(path).read(sample, 0).any()


def test_what_is_absent_is_said(world, tmp_path):
    path = write_lines(tmp_path / "masks.jsonl", lines(world)[1:])
    document_of_some = {video: entry for video, entry in document(world).items() if video != "UVO/all/-a_1"}
    (tmp_path / "sa2va.json").write_text(json.dumps(document_of_some))
    sample = next(s for s, _ in by_sample(world))
    for pred in (path, tmp_path / "sa2va.json"):
        predicted = open_predictions(pred)
        assert predicted.absence(sample) == f"no masks of UVO/all/-a_1/0 in {pred.name}"
        with pytest.raises(DataError, match=r"no masks of UVO/all/-a_1/0"):
            predicted.read(sample, 0)
    results = revos.evaluate(world.root, path)
    assert [problem.sample for problem in results.missing] == ["UVO/all/-a_1/0"]
    assert results.counts["scored"] == 6  # as zero


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": ["123"]}, r"masks\.jsonl: UVO/all/-a_1/0 has 1 masks for 3 frames"),
        ({"size": [24, 30]}, r"UVO/all/-a_1/0, frame 0000\d: the mask is \[24, 30\], the video is \[24, 31\]"),
        ({"counts": ["123", None, None]}, r"frame 00000: the runs cover 6 pixels, the video has 744"),
        ({"counts": ["\u00e9", None, None]}, r"frame 00000: the run string holds a character"),
    ],
)
def test_a_line_that_does_not_fit_is_an_error_and_the_rest_is_scored(world, tmp_path, change, message):
    first, *rest = lines(world)
    path = write_lines(tmp_path / "masks.jsonl", [{**first, **change}, *rest])
    results = revos.evaluate(world.root, path)
    (problem,) = results.errors
    assert problem.sample == "UVO/all/-a_1/0"
    with pytest.raises(DataError, match=message):
        raise DataError(problem.reason)
    assert len(results.rows) == 5


@pytest.mark.parametrize("text", ["{}\n", "[" * 5000 + "\n", "\x00\n", "null\n"])
def test_a_file_of_other_lines_is_refused(tmp_path, text):
    (tmp_path / "masks.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"masks\.jsonl:1: "):
        open_predictions(tmp_path / "masks.jsonl")


@pytest.mark.parametrize(
    "entry", [{"0": []}, {"0": {"prediction_masks": "x"}}, {"0": {}}, {"0": {"prediction_masks": [3, 3, 3]}}]
)
def test_a_document_of_another_form_is_refused(world, tmp_path, entry):
    (tmp_path / "sa2va.json").write_text(json.dumps({"UVO/all/-a_1": entry}))
    sample = next(s for s, _ in by_sample(world))
    with pytest.raises(DataError, match=r"sa2va\.json: UVO/all/-a_1/0"):
        open_predictions(tmp_path / "sa2va.json").read(sample, 0)


def test_places_that_are_no_prediction(tmp_path):
    with pytest.raises(DataError, match="no such folder or file"):
        open_predictions(tmp_path / "nowhere")
    (tmp_path / "masks.txt").touch()
    with pytest.raises(DataError, match=r"--pred must be a \.jsonl"):
        open_predictions(tmp_path / "masks.txt")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "masks.jsonl").touch()
    with pytest.raises(DataError, match="holds both"):
        open_predictions(tmp_path)


def test_grey_values():
    assert predictions.values(np.array([[0, 0]], np.uint8)) == set()
    assert predictions.values(np.array([[0, 7]], np.uint8)) == {7}
    assert predictions.values(np.array([[3, 7]], np.uint8)) == {3, 7}
