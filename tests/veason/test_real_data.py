"""Real annotation files, where they are at hand: published counts, sound copies, masks that another project wrote."""

import json
from pathlib import Path

import pytest

from veason import masks
from veason.datasets import open_dataset, vicas
from veason.doctor import __main__ as doctor
from veason.doctor import published

DATA = Path(__file__).parents[3] / "shared" / "data"


def folder(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


@pytest.mark.parametrize("meta", [None, "ryv_val.txt"])
def test_ref_youtube_vos_valid_has_its_published_size(meta):
    root = folder("refytvos")
    dataset = open_dataset("refytvos", root, meta=root / meta if meta else None)
    assert (len(dataset.by_video), len(dataset)) == (202, 834)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("version", ["v0.1", "v1.0"])
def test_the_splits_of_vicas_have_their_published_sizes(version, part):
    ids = vicas.read_ids(folder("vicas_splits") / version / f"{part}.json")
    assert len(ids) == published.SPLITS["vicas", f"{version}/{part}"].videos


@pytest.mark.parametrize(("name", "root"), [("refdavis", "refdavis"), ("revos", "davis_car_shadow")])
def test_real_copies_are_sound(name, root, capsys):
    arguments = ["--dataset", name, "--data-root", str(folder(root)), "--subset", "--workers", "1"]
    assert doctor.main(arguments) == 0
    assert "nothing found" in capsys.readouterr().out


def test_masks_of_an_absent_object_without_a_run_inside():
    """SA-V writes a mask of zeros where an object is absent, where others write null."""
    content = json.loads((folder("sav") / "sav_manual.json").read_text())
    size = (int(content["video_height"]), int(content["video_width"]))
    rles = [rle for frame in content["masklet"][::20] for rle in frame]
    absent = [rle for rle in masks.check_track(rles, size, "x") if masks.area(rle) == 0]
    assert 0 < len(absent) < len(rles)
    assert all(masks.box(rle) is None and not masks.decode(rle, size).any() for rle in absent)
