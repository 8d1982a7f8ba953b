"""Several data sets as one: how a text names them, whose ground truth is asked, what tells the samples apart."""

import pickle
import string

import index_roots as roots
import pytest
import small_roots as small
from hypothesis import given
from hypothesis import strategies as st

from veason import masks
from veason.datasets import NAMES, open_dataset
from veason.datasets.mixture import Mixture, Part, check_trainable, named_key, open_parts, parse_parts, unique_key
from veason.errors import DataError


@pytest.fixture
def mixed(tmp_path):
    """The hand-made MeViS (4 expressions, its valid_u) and Ref-YouTube-VOS train (2) and ViCaS test (2 videos x 2)."""
    small.write_mevis(tmp_path / "mevis")
    roots.write_refytvos(tmp_path / "refytvos")
    roots.write_vicas(tmp_path / "vicas")
    names = f"mevis={tmp_path}/mevis:valid_u, refytvos={tmp_path}/refytvos + vicas={tmp_path}/vicas:v1.0/test"
    return open_parts(parse_parts(names), split="train")


def test_samples_come_one_data_set_after_the_other(mixed, tmp_path):
    assert len(mixed) == 4 + 2 + 4
    around = [named_key(sample) for sample in mixed][3:7]
    assert around == ["mevis/v2/0", "refytvos/t1/0", "refytvos/t1/1", "vicas/000003/0"]
    assert mixed.split == "mevis valid_u + refytvos train + vicas v1.0/test"
    assert mixed.files["mevis meta"] == tmp_path / "mevis/valid_u/meta_expressions.json"
    assert list(mixed.by_video) == ["mevis/v1", "mevis/v2", "refytvos/t1", "vicas/000003", "vicas/000012"]
    assert [sample.key for sample in mixed.by_video["refytvos/t1"]] == ["t1/0", "t1/1"]


def test_ground_truth_is_that_of_the_samples_own_data_set(mixed):
    both, first, referral = mixed[1], mixed[4], mixed[7]
    # MeViS v1/1: annotations 11 (the square in both frames) and 12 (nothing, then the other square)
    assert [[masks.area(rle) for rle in track] for track in mixed.object_rles(both)] == [[25, 25], [0, 25]]
    # Ref-YouTube-VOS t1/0: object 1, in the first of two frames
    [track] = mixed.object_rles(first)
    assert (masks.decode(track[0], first.size) == small.SQUARE).all()
    assert track[1] is None
    assert mixed.track(first, 2)[1] == masks.encode(small.OTHER)
    # ViCaS 3/1: tracks 7 and 9 of four frames, of which people annotated two; elsewhere every frame counts
    assert [[rle is not None for rle in track] for track in mixed.object_rles(referral)] == [
        [True, True, True, False],
        [True, False, False, True],
    ]
    assert mixed.gt_frames(referral) == roots.VICAS_GT == (0, 2)
    assert mixed.gt_frames(both) == (0, 1)
    assert [masks.area(rle) for rle in mixed.foreground("mevis/v1")] == [25, 50]


def test_it_travels(mixed):
    there = pickle.loads(pickle.dumps(mixed))
    assert list(there) == list(mixed)
    assert all(there.object_rles(sample) == mixed.object_rles(sample) for sample in mixed)


def test_keys_have_a_name_in_front_where_there_is_more_than_one(mixed, tmp_path):
    assert unique_key(mixed, mixed[0]) == "mevis/v1/0"
    alone = open_parts(parse_parts(f"mevis={tmp_path}/mevis"), split="valid_u")
    assert not isinstance(alone, Mixture)
    assert (unique_key(alone, alone[0]), named_key(alone[0])) == ("v1/0", "mevis/v1/0")


def test_every_reader_calls_its_samples_by_the_name_it_is_opened_by(mixed, hand_made, tmp_path):
    """`Mixture` finds the owner of a sample by it."""
    small.write_reasonvos(tmp_path / "reasonvos")
    roots.write_refdavis(tmp_path / "refdavis")
    folders = dict.fromkeys(NAMES, tmp_path) | {"revos": hand_made.write()}
    for name in NAMES:
        root = folders[name] if name == "revos" else folders[name] / name
        split = {"refytvos": "train", "vicas": "v1.0/test"}.get(name)
        dataset = open_dataset(name, root, split=split)
        assert dataset.name == name
        assert {sample.dataset for sample in dataset} == {name}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/data/ReVOS", []),
        ("world", []),
        ("c++/a,b=c", []),  # NAME= does not open it
        ("revos=/data/ReVOS", [("revos", "/data/ReVOS", None)]),
        ("mevis=/a:valid_u+refytvos=/b", [("mevis", "/a", "valid_u"), ("refytvos", "/b", None)]),
        (" revos=/a , vicas=/b:v1.0/train ", [("revos", "/a", None), ("vicas", "/b", "v1.0/train")]),
        ("revos=/c++,d/a=b+mevis=m", [("revos", "/c++,d/a=b", None), ("mevis", "m", None)]),
        ("revos=/odd:place/ReVOS", [("revos", "/odd:place/ReVOS", None)]),
    ],
)
def test_the_text_that_names_data_sets(text, parts):
    assert parse_parts(text) == tuple(Part(*part) for part in parts)


def test_a_folder_is_a_plain_path_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "seed=3" / "world").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_parts("seed=3/world") == ()
    assert parse_parts("seed=4/world") == (Part("seed", "4/world"),)


roots_in_text = st.text(string.ascii_letters + "/._- é", min_size=1).map(str.strip).filter(bool)
splits_in_text = st.sampled_from([None, "train", "valid_u", "v0.1/val"])


@given(
    st.lists(st.builds(Part, st.sampled_from(NAMES), roots_in_text, splits_in_text), min_size=1, max_size=4),
    st.sampled_from(["+", ",", " + ", ", "]),
)
def test_what_is_written_is_read_back(parts, joint):
    assert parse_parts(joint.join(map(str, parts))) == tuple(parts)


@given(st.text(st.sampled_from("ab=:+,/. \0\n") | st.characters(), min_size=0, max_size=300))
def test_any_root_is_read_or_refused_by_name(root):
    """Roots with separators, control characters, and longer than a file system allows."""
    try:
        parts = parse_parts(f"revos={root}")
    except DataError:
        parts = None
    if not root.strip():
        assert parts is None
    elif "=" not in root:  # else another part may begin in it, and that one's root may be empty
        assert parts is not None
    assert parts is None or (parts[0].name == "revos" and all(part.root for part in parts))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reasonvos=/r", "ReasonVOS is one test set"),
        ("revos=/a+refdavis=/d:valid", "refdavis=/d:valid: valid is scored by the benchmark.*take refdavis=/d:train"),
        ("mevis=/m:valid_u", "mevis=/m:valid_u: valid_u is scored by the benchmark"),
        ("vicas=/v:v1.0/test", "v1.0/test is scored by the benchmark.*take vicas=/v:v1.0/train"),
    ],
)
def test_what_is_scored_is_not_trained_on(text, message):
    with pytest.raises(DataError, match=message):
        check_trainable(parse_parts(text))
    check_trainable(parse_parts("revos=/a:train+refdavis=/d+vicas=/v:v0.1/train"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("revos=", "'revos=': expected NAME=ROOT"),
        ("mevs={m}:valid_u", "unknown data set 'mevs'; known: revos, mevis"),
        ("mevis={m}:valid_u+mevis={m}:valid_u", "mevis, mevis: a mixture may list each data set only once"),
        ("vicas={m}", "the ViCaS split 'train' names no version"),
    ],
)
def test_what_cannot_be_opened(tmp_path, text, message):
    small.write_mevis(tmp_path / "mevis")
    with pytest.raises(DataError, match=message):
        open_parts(parse_parts(text.format(m=tmp_path / "mevis")), split="train")


def test_one_expression_file_cannot_be_that_of_several_data_sets(tmp_path):
    with pytest.raises(DataError, match="needs a single data set, found 2"):
        open_parts(parse_parts("revos=/a+mevis=/b"), split="train", meta=tmp_path / "subset.json")
