"""For scoring, what the published scripts do not look at is a warning; for training it stays an error."""

import json
import pickle

import pytest
import small_roots as small

from tests.conftest import FRAMES, dot, square
from veason import masks
from veason.datasets import open_dataset
from veason.datasets.mixture import Mixture
from veason.errors import DataError
from veason.worker_pool import map_in_order

VIDEO = "UVO/-a_b"


def open_both(root, name="revos", **options):
    """The data set for scoring; that it is refused otherwise is asserted."""
    with pytest.raises(DataError):
        list(map(open_dataset(name, root, **options).object_rles, open_dataset(name, root, **options)))
    return pickle.loads(pickle.dumps(open_dataset(name, root, scoring=True, **options)))


def test_frames_keep_the_order_in_which_they_are_stored(hand_made):
    """Masks go by position, so a sorted list of frames would put them on other frames."""
    hand_made.meta["videos"][VIDEO]["frames"] = ["00010", "00000", "00000", "00015"]
    dataset = open_both(hand_made.write())
    assert dataset[0].frames == ("00010", "00000", "00000", "00015")
    assert dataset.object_rles(dataset[0])[0] == tuple(masks.encode(square(t)) for t in range(4))
    (line,) = dataset.warnings
    assert line.endswith("video 'UVO/-a_b': frames are not sorted or not unique; they are scored as stored")


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_expression_without_text(hand_made, text):
    for exp_id in "02":
        hand_made.meta["videos"][VIDEO]["expressions"][exp_id]["exp"] = text
    dataset = open_both(hand_made.write())
    assert [sample.expression for sample in dataset] == ["", "what is there?", ""]
    (line,) = dataset.warnings
    assert line.endswith("expression '0': exp has no text, which scoring does not need (and 1 more)")


def test_a_text_that_is_no_text_is_no_warning(hand_made):
    hand_made.meta["videos"][VIDEO]["expressions"]["0"]["exp"] = 7
    with pytest.raises(DataError, match="exp must be a non-empty text"):
        open_dataset("revos", hand_made.write(), scoring=True)


def test_masks_beyond_the_last_frame(hand_made):
    hand_made.mask_dict["9000000001"] += [masks.encode(dot(0)), "no mask at all"]
    dataset = open_both(hand_made.write())
    assert len(dataset.object_rles(dataset[0])[0]) == len(FRAMES)
    (line,) = dataset.warnings
    assert "annotation 9000000001 of UVO/-a_b/0: more masks than frames" in line
    hand_made.mask_dict["9000000001"] = hand_made.mask_dict["9000000001"][:3]
    dataset = open_dataset("revos", hand_made.write(), scoring=True)
    with pytest.raises(DataError, match="3 masks for 4 frames"):  # the scripts end here, too
        dataset.object_rles(dataset[0])


def track_lengths(dataset, key):
    """For a pool of processes."""
    return [len(track) for track in dataset.object_rles(next(sample for sample in dataset if sample.key == key))]


def test_what_a_worker_lets_through_is_said_too(hand_made, capfd):
    hand_made.mask_dict["9000000001"] += [None]
    dataset = open_dataset("revos", hand_made.write(), scoring=True)
    keys = [f"{VIDEO}/0", f"{VIDEO}/1"]
    assert list(map_in_order(track_lengths, dataset, keys, workers=2, label="x", unit="x")) == [[4], [4, 4]]
    assert "more masks than frames" in capfd.readouterr().err


def test_a_fifth_source_of_reasonvos(tmp_path):
    root = small.write_reasonvos(tmp_path / "r")
    meta = small.reason_meta()
    meta["videos"]["v2"]["source"] = "sav"
    (root / "meta_expressions.json").write_text(json.dumps(meta))
    (root / "Annotations/burst_v2_1").rename(root / "Annotations/sav_v2_1")
    dataset = open_both(root, "reasonvos")
    assert [masks.area(rle) for rle in dataset.object_rles(dataset[3])[0]] == [25]
    assert dataset.warnings == [
        f"{root}/meta_expressions.json: video 'v2': source 'sav': the source is none of vipseg, burst, mose, mevis"
    ]


def test_sound_data_has_no_warnings_and_a_mixture_those_of_its_parts(hand_made, tmp_path):
    mevis = open_dataset("mevis", small.write_mevis(tmp_path / "mevis"), scoring=True)
    assert mevis.warnings == []
    hand_made.meta["videos"][VIDEO]["expressions"]["0"]["exp"] = ""
    revos = open_dataset("revos", hand_made.write(), scoring=True)
    assert Mixture([mevis, revos]).warnings == revos.warnings != []
