"""The doctor finds what was broken on purpose, names it, says what to do, and is content with sound data."""

import json
import shutil
import subprocess
import sys

import index_roots as roots
import numpy as np
import pytest
from PIL import Image

from demo.writer import build_world
from tests.conftest import SIZE, dot, square
from veason import frames, masks
from veason.datasets import open_dataset
from veason.doctor import __main__ as doctor
from veason.doctor import index, oracle, published
from veason.exclude import read_exclude

VIDEO = "UVO/-a_b"
ALL = {f"{VIDEO}/{n}" for n in "012"}


def examine(root, *arguments, workers="1"):
    """(exit code, the JSON report)."""
    path = root / "report.json"
    common = ["--dataset", "revos", "--data-root", str(root), "--json", str(path), "--workers", workers]
    code = doctor.main([*common, *map(str, arguments)])
    return code, json.loads(path.read_text()) if path.exists() else None


def findings(root, *arguments):
    """(severity, kind) of each finding of a part of a data set, and the findings themselves."""
    code, report = examine(root, "--subset", *arguments)
    found = [f for f in report["findings"] if f["severity"] != "note"]
    assert code == (1 if found else 0)
    return [(f["severity"], f["kind"]) for f in found], found


def foreground(tracks):
    return [masks.merge(rles) or masks.encode(np.zeros(SIZE, bool)) for rles in zip(*tracks, strict=True)]


def test_sound_data_is_clean(hand_made, capsys):
    hand_made.write()
    assert findings(hand_made.path) == ([], [])
    out = capsys.readouterr().out
    assert "revos valid: 3 expressions, 1 videos, 4 pictures looked at" in out


def test_a_missing_folder(hand_made):
    root = hand_made.write()
    (root / "JPEGImages" / "UVO").rename(root / "elsewhere")
    kinds, (one,) = findings(root)
    assert kinds == [("error", "missing frames")]
    assert one["where"].endswith("JPEGImages/UVO/-a_b")
    assert set(one["samples"]) == ALL


def test_missing_frames(hand_made):
    root = hand_made.write()
    hand_made.frame("00005").unlink()
    hand_made.frame("00010").unlink()
    kinds, (one,) = findings(root)
    assert kinds == [("error", "missing frames")]
    assert one["what"] == "2 of 4 frames are not there, first 00005.jpg"


def test_a_frame_of_another_size_and_one_that_is_no_picture(hand_made):
    root = hand_made.write()
    Image.new("RGB", (32, 24)).save(hand_made.frame("00005"))
    hand_made.frame("00010").write_bytes(b"no picture")
    kinds, found = findings(root)
    assert kinds == [("error", "broken frames"), ("error", "frame sizes")]
    assert "00010.jpg" in found[0]["where"]
    assert "1 of 4 frames are of another size than the masks: 00005.jpg is 24x32, the video 48x64" in found[1]["what"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rles: rles.pop(), "3 masks for 4 frames"),
        (lambda rles: rles[1].update(size=[64, 48]), "frame 1: the mask is"),
        (lambda rles: rles[2].update(counts="\x7f"), "frame 2: the run string"),
    ],
)
def test_masks_that_do_not_fit(hand_made, spoil, message):
    """Annotation …2 is named by expression 1 alone."""
    spoil(hand_made.mask_dict["9000000002"])
    kinds, (one,) = findings(hand_made.write())
    assert kinds == [("error", "masks")]
    assert message in one["what"]
    assert one["samples"] == [f"{VIDEO}/1"]


def test_an_annotation_that_is_not_there(hand_made):
    del hand_made.mask_dict["9000000001"]
    kinds, (one,) = findings(hand_made.write())
    assert kinds == [("error", "masks")]
    assert set(one["samples"]) == {f"{VIDEO}/0", f"{VIDEO}/1"}


def test_expressions_that_point_at_nothing(hand_made):
    """0 names an annotation without a pixel, 1 none although it should, 2 one although it should not."""
    expressions = hand_made.meta["videos"][VIDEO]["expressions"]
    hand_made.mask_dict["9000000001"] = [None] * 4
    expressions["1"] |= {"obj_id": [], "anno_id": []}
    expressions["2"] |= {"obj_id": [1], "anno_id": [9000000002]}
    kinds, found = findings(hand_made.write())
    assert kinds == [("warning", "empty masks")] + [("warning", "target")] * 3
    assert [f["samples"] for f in found[1:]] == [[f"{VIDEO}/{n}"] for n in "012"]


@pytest.mark.parametrize(("part", "kinds"), [(True, []), (False, ["foreground"])])
def test_a_stored_foreground_of_more_than_the_masks(hand_made, part, kinds):
    """More is right where the expressions are some of the video's only."""
    root = hand_made.write()
    tracks = [*hand_made.mask_dict.values(), [masks.encode(np.ones(SIZE, bool))] * 4]
    content = {VIDEO: {"masks_rle": foreground(tracks)}}
    (root / "mask_dict_foreground.json").write_text(json.dumps(content))
    _, report = examine(root, *(["--subset"] if part else []))
    assert [f["kind"] for f in report["findings"] if f["kind"] == "foreground"] == kinds


def test_a_stored_foreground_of_other_masks(hand_made):
    root = hand_made.write()
    tracks = [[masks.encode(np.roll(square(t), 1, 0)) for t in range(4)]]
    (root / "mask_dict_foreground.json").write_text(json.dumps({VIDEO: {"masks_rle": foreground(tracks)}}))
    kinds, (one,) = findings(root)
    assert kinds == [("warning", "foreground")]
    assert "4 of 4 frames looked at differ" in one["what"]
    assert "100 pixels stored, 100 annotated" in one["what"]  # frame 0 has the square alone


def test_unreferenced_ids_need_both_splits(hand_made):
    hand_made.mask_dict["77"] = [None] * 4
    root = hand_made.write()
    notes = [f["what"] for f in examine(root, "--subset")[1]["findings"] if f["kind"] == "unreferenced ids"]
    assert "split train is not there" in notes[0]
    (root / "meta_expressions_train_.json").write_text(json.dumps(hand_made.meta))
    notes = [f["what"] for f in examine(root, "--subset")[1]["findings"] if f["kind"] == "unreferenced ids"]
    assert notes == ["1 annotations are named by no expression, first 77"]


def test_every_unsorted_video_is_named_and_the_data_cannot_be_opened(hand_made, capsys):
    hand_made.meta["videos"]["MOSE/x"] = json.loads(json.dumps(hand_made.meta["videos"][VIDEO]))
    hand_made.meta["videos"][VIDEO]["frames"] = ["00005", "00000", "00010", "00015"]
    hand_made.meta["videos"]["MOSE/x"]["frames"] = ["00000", "00000", "00010", "00015"]
    code, report = examine(hand_made.write())
    assert (code, report) == (2, None)
    said = capsys.readouterr()
    assert "video UVO/-a_b: 2 of 4 frames are not at their sorted place" in said.out
    assert "video MOSE/x: 1 frames are listed twice" in said.out
    assert "frames are not sorted or not unique" in said.err


def test_counts_are_compared_unless_it_is_a_part(hand_made):
    """One video in each split, three expressions: 416 and 1,042 are published."""
    root = hand_made.write()
    (root / "meta_expressions_train_.json").write_text(json.dumps(hand_made.meta))
    code, report = examine(root)
    assert code == 1
    found = [f["what"] for f in report["findings"] if f["kind"] == "counts"]
    assert found == [
        "revos valid has 1 videos, published 416",
        "revos train and valid has 2 videos, published 1042; 6 expressions, published 35074",
    ]
    assert published.compare("x", published.Size(91, 458), published.SPLITS["reasonvos", "test"]) == []


def test_no_data_set_at_all(tmp_path, capsys):
    assert doctor.main(["--dataset", "revos", "--data-root", str(tmp_path / "no")]) == 2
    assert "no such folder" in capsys.readouterr().err


# the oracle


def drifted(hand_made):
    """The square's masks lag two frames behind its pictures; the dot's are right."""
    hand_made.mask_dict["9000000001"] = [masks.encode(square(t - 2)) for t in range(4)]
    expressions = hand_made.meta["videos"][VIDEO]["expressions"]
    expressions["1"] |= {"obj_id": [1], "anno_id": [9000000002]}
    return hand_made.write()


def test_the_oracle_finds_drift_and_it_can_be_left_out(hand_made):
    root = drifted(hand_made)
    code, report = examine(
        root, "--subset", "--deep", "--contact-sheet", root / "sheet.png", "--write-exclude", root / "exclude.txt"
    )
    assert code == 1
    assert [entry["sample"] for entry in report["oracle"]] == [f"{VIDEO}/0", f"{VIDEO}/1"]
    assert report["oracle"][0]["J"] < 0.3 < 0.8 < report["oracle"][1]["J"]
    assert read_exclude(root / "exclude.txt") == {f"{VIDEO}/0"}
    with Image.open(root / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet)
    assert (pixels == (86, 180, 233)).all(-1).any()  # an outline of each colour
    assert (pixels == (230, 159, 0)).all(-1).any()


def test_two_workers_find_the_same(hand_made):
    root = drifted(hand_made)
    reports = [examine(root, "--subset", "--deep", workers=workers)[1] for workers in "12"]
    for report in reports:
        del report["ms_per_header"]
        report["findings"] = [f for f in report["findings"] if f["kind"] != "slow storage"]
    assert reports[0] == reports[1]
    assert len(reports[0]["oracle"]) == 2


def test_a_frame_that_cannot_be_decoded_is_found_with_deep_only(hand_made):
    root = hand_made.write()
    data = hand_made.frame("00015").read_bytes()
    hand_made.frame("00015").write_bytes(data[:-100])  # the header is whole
    assert findings(root)[0] == []
    assert findings(root, "--deep")[0] == [("error", "broken frames")]


def test_the_frames_that_the_oracle_looks_at():
    """Areas 100 0 0 | 36 136 136 in three stretches of two frames: keyframes 0, 3 and 4, each with its neighbour."""
    nothing = masks.encode(np.zeros(SIZE, bool))
    tracks = [
        [masks.encode(square(0)), nothing, None, None, masks.encode(square(1)), masks.encode(square(2))],
        [None, None, None, *[masks.encode(dot(0))] * 3],
    ]
    assert oracle.keyframes(tracks, range(6)) == [(0, (0, 1)), (3, (3, 4)), (4, (4, 5))]
    assert oracle.keyframes(tracks, (5,)) == [(5, (5,))]
    assert oracle.keyframes([[None] * 3], range(3)) == []


def test_the_oracles_j_is_told_apart_from_that_of_eval(hand_made, capsys):
    """Four frames, hence stretches of two, one and one frames, so that every frame is looked at."""
    root = drifted(hand_made)
    _, report = examine(root, "--subset", "--deep")
    out = capsys.readouterr().out
    assert "in up to 4 frames of each" in out
    assert "eval scores every frame of a video, tracked from one keyframe" in out
    entry = report["oracle"][0]
    assert entry["frame_ids"] == [0, 1, 2, 3]
    dataset = open_dataset("revos", root)
    sample = next(sample for sample in dataset if sample.key == entry["sample"])
    tracks, video = dataset.object_rles(sample), frames.VideoFrames(sample)
    found = oracle.Oracle("grabcut", {}).masks(tracks, range(4), video)
    by_hand = [masks.iou(mask, masks.decode(tracks[0][t], SIZE)) for t, mask in found.items()]
    assert entry["J"] == round(sum(by_hand) / len(by_hand), 4)


# the command


def test_published_counts_of_the_referring_sets():
    assert published.SPLITS["refytvos", "valid"] == published.Size(202, 834)
    assert published.SPLITS["refdavis", "valid"] == published.Size(30, 244)


def test_a_split_of_the_server_is_no_fault_and_expressions_alone_are_counted(tmp_path, capsys):
    root = roots.write_refytvos(tmp_path / "y")
    arguments = ["--dataset", "refytvos", "--data-root", str(root), "--workers", "1"]
    assert doctor.main([*arguments, "--subset"]) == 0
    assert "note, ground truth:\n  refytvos valid: " in capsys.readouterr().out
    shutil.rmtree(root / "valid")
    assert doctor.main(arguments) == 1
    out = capsys.readouterr().out
    assert "refytvos valid: 2 expressions, 1 videos, 0 pictures" in out
    assert "refytvos valid has 1 videos, published 202; 2 expressions, published 834" in out


def test_help_and_impossible_options(hand_made):
    done = subprocess.run([sys.executable, "-m", "veason.doctor", "--help"], capture_output=True, text=True, check=True)
    assert "The exit code is 0 if nothing is wrong, 1 for errors or warnings" in done.stdout
    for wrong in (["--contact-sheet", "x.png"], ["--tracker", "sam2"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            examine(hand_made.path, *wrong)


def test_index_checks_see_through_what_is_no_expression_file(tmp_path):
    (tmp_path / "meta_expressions_.json").write_text('{"videos": [1]}')
    (tmp_path / "meta_expressions.json").write_text("[]")
    assert index.frame_order(tmp_path) == []


def test_the_synthetic_world_is_sound(tmp_path):
    build_world(tmp_path / "w", videos=4, size=(56, 84), frames=(4, 6), policy=False)
    for split in ("train", "valid"):
        dataset = open_dataset("revos", tmp_path / "w", split=split)
        code, report = examine(tmp_path / "w", "--split", split, "--subset")
        assert code == 0
        assert report["pictures"] == sum(len(samples[0]) for samples in dataset.by_video.values())
        assert not [f for f in report["findings"] if f["kind"] in ("foreground", "unreferenced ids")]
