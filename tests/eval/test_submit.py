"""Archives for servers: what goes in, bytes that repeat, and checking a file that may come from anywhere."""

import json
import os
import zipfile

import cv2
import index_roots as roots
import numpy as np
import pytest
import small_roots as small

from eval import submit
from veason import atomic, mask_png

NAMES = [f"Annotations/v1/{i}/{frame}.png" for i in "01" for frame in ("00000", "00005")]
GOOD = mask_png.encode(small.SQUARE)


@pytest.fixture
def root(tmp_path):
    return roots.write_refytvos(tmp_path / "gt")


@pytest.fixture
def pred(tmp_path):
    for i, value in (("0", 255), ("1", 1)):
        small.write_masks(tmp_path / "pred/v1" / i, ["00000", "00005"], [small.SQUARE, small.OTHER], value)
    return tmp_path / "pred"


def run(root, *options, dataset="refytvos"):
    return submit.main([str(o) for o in ["--dataset", dataset, "--data-root", root, "--workers", 1, *options]])


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_mask_is_grey_of_0_and_255_whatever_it_was(root, pred, tmp_path, capsys):
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 0
    held = contents(tmp_path / "s.zip")
    assert list(held) == NAMES
    for name, data in held.items():
        assert (data[24], data[25]) == (8, 0)  # bits, grey
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        truth = small.SQUARE if name.endswith("00000.png") else small.OTHER
        assert np.array_equal(mask, 255 * truth.astype(np.uint8))
    printed = capsys.readouterr().out
    assert "expected 2 expressions, found 2, missing 0" in printed
    assert "expected 4 files, found 4, missing 0, doubled 0, extra 0, wrong 0" in printed
    assert run(root, "--check", tmp_path / "s.zip") == 0


def test_the_same_masks_give_the_same_bytes(root, pred, tmp_path):
    for name, workers in (("1.zip", 1), ("2.zip", 2)):
        assert run(root, "--pred", pred, "--out", tmp_path / name, "--workers", workers) == 0
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_mevis_lies_at_the_root_of_the_archive(tmp_path):
    root = small.write_mevis(tmp_path / "mevis")
    (root / "valid").symlink_to("valid_u")
    (root / "valid_u/mask_dict.json").unlink()
    assert run(root, "--pred", small.predict_mevis(tmp_path / "p"), "--out", tmp_path / "s.zip", dataset="mevis") == 0
    assert sorted(contents(tmp_path / "s.zip"))[:2] == ["v1/0/00000.png", "v1/0/00001.png"]


def test_missing_expressions(root, pred, tmp_path, capsys):
    (pred / "v1/1/00005.png").unlink()
    options = ["--pred", pred, "--out", tmp_path / "s.zip"]
    assert run(root, *options) == 0
    assert "found 1, missing 1 (--missing zero), skipped 0" in capsys.readouterr().out
    assert contents(tmp_path / "s.zip")[NAMES[2]] == mask_png.encode(small.NOTHING)
    assert run(root, *options, "--missing", "skip") == 0
    assert list(contents(tmp_path / "s.zip")) == NAMES[:2]
    assert run(root, "--check", tmp_path / "s.zip") == 2
    assert f"{NAMES[2]}: it is missing" in capsys.readouterr().err
    assert run(root, *options, "--missing", "error") == 2
    assert "v1/1: 1 of 2 frames are missing" in capsys.readouterr().err


def test_a_broken_mask_leaves_the_older_archive(root, pred, tmp_path, capsys):
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 0
    before = (tmp_path / "s.zip").read_bytes()
    small.write_masks(pred / "v1/1", ["00000"], [small.SQUARE[:, :19]])
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 2
    printed = capsys.readouterr()
    assert "error: v1/1: " in printed.err
    assert "20x19" in printed.err
    assert "s.zip: not written" in printed.out
    assert (tmp_path / "s.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def grey(mask, flags=()):
    return cv2.imencode(".png", mask, list(flags))[1].tobytes()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "0 bytes"),
        (b"GIF89a" + bytes(100), "not a PNG file"),
        (GOOD[:-20], "damaged|cannot"),
        (mask_png.encode(small.SQUARE, bits=1), "1 bits and colour type 0"),
        (grey(np.zeros((20, 20, 3), np.uint8)), "8 bits and colour type 2"),
        (grey(small.SQUARE.astype(np.uint8)), "value 1,"),
        (mask_png.encode(small.SQUARE[:, :19]), "20x19, the video 20x20"),
        (bytes(1 << 22), "unpacks to more than"),
    ],
)
def test_a_wrong_file_is_named(root, tmp_path, capsys, data, fault):
    write_zip(tmp_path / "s.zip", [(NAMES[0], data), *((name, GOOD) for name in NAMES[1:])])
    assert run(root, "--check", tmp_path / "s.zip") == 2
    printed = capsys.readouterr()
    assert "missing 0, doubled 0, extra 0, wrong 1" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {NAMES[0]}: ")
    assert any(words in line for words in fault.split("|"))


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("Annotations/../../evil.png", "extra 1"),
        ("/etc/passwd", "extra 1"),
        ("v1/0/00000.png", "extra 1"),
        ("Annotations/v1/0/00001.png", "extra 1"),
        ("__MACOSX/", "extra 1"),
        (NAMES[1], "doubled 1"),
    ],
)
def test_what_does_not_belong_there_is_named(root, tmp_path, capsys, name, counts):
    write_zip(tmp_path / "s.zip", [*((n, GOOD) for n in NAMES), (name, GOOD)])
    assert run(root, "--check", tmp_path / "s.zip") == 2
    printed = capsys.readouterr()
    assert counts in printed.out
    assert name in printed.err
    assert not (tmp_path / "evil.png").exists()


def test_entries_for_folders_are_no_extra_files(root, tmp_path):
    folders = ["Annotations/", "Annotations/v1/", "Annotations/v1/0/"]
    write_zip(tmp_path / "s.zip", [*((name, b"") for name in folders), *((name, GOOD) for name in NAMES)])
    assert run(root, "--check", tmp_path / "s.zip") == 0


def test_entries_that_cannot_be_unpacked(root, tmp_path, capsys):
    write_zip(tmp_path / "s.zip", [(name, GOOD) for name in NAMES])
    data = bytearray((tmp_path / "s.zip").read_bytes())
    data[len(NAMES[0]) + 30 + 10] ^= 0xFF  # in the first entry's data, behind its header and name
    encrypted = data.rindex(b"PK\x01\x02") + 8  # the flags of the last entry in the directory
    data[encrypted] |= 1
    (tmp_path / "s.zip").write_bytes(data)
    assert run(root, "--check", tmp_path / "s.zip") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {NAMES[0]}: ")
    assert lines[1:] == [f"error: {NAMES[3]}: it is encrypted"]


@pytest.mark.parametrize("data", [b"", b"no archive", bytes(1000)])
def test_a_file_that_is_no_archive(root, tmp_path, capsys, data):
    (tmp_path / "s.zip").write_bytes(data)
    assert run(root, "--check", tmp_path / "s.zip") == 2
    assert "s.zip: not a zip archive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pred", "p"], "packing needs --pred and --out"),
        (["--check", "nowhere.zip"], "nowhere.zip: no such file"),
        (["--check", "s.zip", "--workers", "0"], "workers must be at least 1"),
    ],
)
def test_wrong_options(root, capsys, options, message):
    assert run(root, *options) == 2
    assert message in capsys.readouterr().err


def test_entries_know_no_time_and_no_machine(root, pred, tmp_path):
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 0
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        for info in archive.infolist():
            assert (info.date_time, info.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)
            assert (info.create_system, info.external_attr) == (3, 0o644 << 16)


# what is lost, foreign or in use


def claim(run, *keys):
    """A run folder's word that samples are done."""
    lines = [{"video": key.rpartition("/")[0], "exp_id": key.rpartition("/")[2]} for key in keys]
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_masks_lost_from_a_run_are_not_packed_as_empty(root, pred, tmp_path, capsys):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    pred.rename(run_folder / "Annotations")
    claim(run_folder, "v1/0", "v1/1")
    assert run(root, "--pred", run_folder, "--out", tmp_path / "s.zip") == 0
    (tmp_path / "s.zip").unlink()
    (run_folder / "Annotations/v1/1/00005.png").unlink()
    for missing in ("zero", "skip"):
        assert run(root, "--pred", run_folder, "--out", tmp_path / "s.zip", "--missing", missing) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: v1/1: ")
        assert "says that it is done" in line
        assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize("data", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>log in</html>"])
def test_a_foreign_file_is_called_what_it_is(root, tmp_path, capsys, data):
    words = "Git LFS pointer" if data.startswith(b"version") else "a web page"
    for name, option in (("pred.jsonl", "--pred"), ("s.zip", "--check")):
        (tmp_path / name).write_bytes(data)
        more = ["--out", tmp_path / "out.zip"] if option == "--pred" else []
        assert run(root, option, tmp_path / name, *more) == 2
        assert words in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(root, tmp_path, capsys):
    os.mkfifo(tmp_path / "s.zip")
    assert run(root, "--check", tmp_path / "s.zip") == 2
    assert "no regular file" in capsys.readouterr().err


def test_a_run_on_another_data_set_is_not_packed(root, pred, tmp_path, capsys):
    (pred / "run.json").write_text(json.dumps({"settings": {"dataset": "mevis", "split": "valid"}}))
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 2
    assert "the run predicted 'mevis'" in capsys.readouterr().err


def test_an_archive_that_another_process_writes_is_left_alone(root, pred, tmp_path, capsys):
    partial = tmp_path / ".s.zip.partial"
    with open(partial, "wb") as file:
        file.write(b"theirs")
        file.flush()
        atomic.take_lock(file.fileno(), partial)
        assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 2
        assert "another process is writing here" in capsys.readouterr().err
        assert partial.read_bytes() == b"theirs"
    assert run(root, "--pred", pred, "--out", tmp_path / "s.zip") == 0  # it ended without finishing
    assert not partial.exists()
