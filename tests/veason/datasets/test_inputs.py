"""A run that goes on knows every file that it reads of a data set: another one in its place is another input."""

import os

import pytest

from demo import twins
from veason.datasets import inputs, mixture, open_dataset

SPLITS = {"revos": "valid", "refytvos": "train", "vicas": "v1.0/val"}


@pytest.fixture(scope="module")
def forms(world, tmp_path_factory):
    """The world in the form of every benchmark, by name."""
    out = tmp_path_factory.mktemp("forms")
    return {"revos": world} | {name: twins.build_twin(name, world, out / name) for name in twins.WRITERS}


def changed(dataset, path, before):
    """The roles of which the fingerprint differs once a file is older than it was."""
    status = path.stat()
    os.utime(path, (1, 1))
    try:
        now = inputs.fingerprints(dataset, dataset)
        return [role for role in now if now[role] != before[role]]
    finally:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["revos", *sorted(twins.WRITERS)])
def test_every_file_that_is_read_tells_of_a_change(forms, name):
    dataset = open_dataset(name, forms[name], split=SPLITS.get(name))
    before = inputs.fingerprints(dataset, dataset)
    assert inputs.fingerprints(dataset, dataset) == before
    last = list(dataset)[-1]
    assert changed(dataset, last.frame_path(len(last) - 1), before) == ["frames"]
    for role, path in dataset.files.items():
        assert changed(dataset, path, before) == [role]
    own = name in ("refytvos", "refdavis", "reasonvos", "vicas")
    assert ("truth" in before) == bool(dataset.truth_files(last)) == own
    if own:
        path = next(path for path in reversed(dataset.truth_files(last)) if path.is_file())
        assert changed(dataset, path, before) == ["truth"]
        assert before["truth"]["files"] == sum(
            path.is_file() for path in {path for sample in dataset for path in dataset.truth_files(sample)}
        )


def test_the_folder_of_an_expression_is_its_truth(forms):
    """In the layout of Ref-YouTube-VOS with binary PNGs, an expression's truth is its own folder."""
    dataset = open_dataset("refytvos", forms["refytvos"], split="train")
    sample = dataset[0]
    folder = forms["refytvos"] / "train/Annotations" / sample.video
    own = folder / sample.exp_id
    own.mkdir()
    try:
        for frame in sample.frames:
            (own / f"{frame}.png").write_bytes((folder / f"{frame}.png").read_bytes())
        again = open_dataset("refytvos", forms["refytvos"], split="train")
        assert again.truth_files(again[0]) == tuple(own / f"{frame}.png" for frame in sample.frames)
    finally:
        for path in own.iterdir():
            path.unlink()
        own.rmdir()


def test_a_mixture_asks_the_sample_s_own_data_set(forms):
    dataset = mixture.open_parts(
        mixture.parse_parts(f"revos={forms['revos']}+refytvos={forms['refytvos']}"), split="train"
    )
    before = inputs.fingerprints(dataset, dataset)
    assert before.keys() > {"revos meta", "revos masks", "refytvos meta", "frames", "truth"}
    path = dataset.truth_files(list(dataset)[-1])[0]
    assert changed(dataset, path, before) == ["truth"]
    assert dataset.truth_files(dataset[0]) == ()


def test_samples_that_are_left_out_count_for_nothing(forms):
    dataset = open_dataset("refytvos", forms["refytvos"], split="train")
    first = [sample for sample in dataset if sample.video == dataset[0].video]
    before = inputs.fingerprints(dataset, first)
    assert before["frames"]["files"] == before["truth"]["files"] == len(first[0])
    other = next(sample for sample in dataset if sample.video != dataset[0].video)
    os.utime(other.frame_path(0), (1, 1))
    assert inputs.fingerprints(dataset, first) == before
