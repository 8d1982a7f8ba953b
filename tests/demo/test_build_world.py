"""Writing: the same bytes again, all or nothing, and a command that says what it did."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys

import pytest

from demo.expressions import questions
from demo.world import main
from demo.writer import build_world, folder_in_place, read_scenes
from veason.atomic import Lock
from veason.errors import DataError

SMALL = {"videos": 3, "size": (84, 112), "frames": (4, 6)}


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_world(tmp_path / name, seed=seed, **SMALL)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() >= {"mask_dict.json", "world.json", "scenes.json"}
    assert a["mask_dict.json"] != c["mask_dict.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}  # nothing temporary is left


def test_a_standing_world_is_left_alone_and_another_one_refused(tmp_path):
    first = build_world(tmp_path / "w", seed=1, **SMALL)
    (tmp_path / "w" / "scenes.json").write_text("touched")
    assert build_world(tmp_path / "w", seed=1, **SMALL) == first
    assert (tmp_path / "w" / "scenes.json").read_text() == "touched"
    with pytest.raises(DataError, match=r"holds another world \(seed 1, not 2\)"):
        build_world(tmp_path / "w", seed=2, **SMALL)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is no synthetic world"):
        build_world(tmp_path, seed=1, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("demo.writer._write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        build_world(tmp_path / "w", seed=1, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["gone", "empty"])
@pytest.mark.parametrize("pattern", ["mask_dict.json", "meta_expressions_valid_.json", "JPEGImages/**/00001.jpg"])
def test_a_standing_world_that_is_not_whole_is_named(tmp_path, pattern, damage):
    build_world(tmp_path / "w", seed=1, **SMALL)
    path = next((tmp_path / "w").glob(pattern))
    path.unlink() if damage == "gone" else path.write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(str(path))):
        build_world(tmp_path / "w", seed=1, **SMALL)


@pytest.mark.parametrize("text", ["", "[]", '{"parameters": {}}', "{"])
def test_a_description_that_is_none_is_named(tmp_path, text):
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(DataError, match=r"world\.json: "):
        build_world(tmp_path, seed=1, **SMALL)


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    for name in (".w.abcdefg1", ".w.abcdefg2", ".w.notes", ".v.abcdefg1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "frame.jpg").touch()
    with Lock(tmp_path / ".w.abcdefg2" / ".lock"):
        build_world(tmp_path / "w", seed=1, **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"w", ".w.abcdefg2", ".w.notes", ".v.abcdefg1"}
    assert not (tmp_path / "w" / ".lock").exists()


def test_two_writers_of_one_world(tmp_path):
    with pytest.raises(DataError, match="another process has written it meanwhile"), folder_in_place(tmp_path / "w"):
        build_world(tmp_path / "w", seed=1, **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"w"}


def test_a_full_disk_is_one_line_with_the_folder(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    assert main(["--out", str(tmp_path / "w"), "--videos", "1", "--no-policy"]) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path / 'w'}: no space left; free some and run the same command again\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "w").mkdir()
    build_world(tmp_path / "w", seed=1, **SMALL)
    assert (tmp_path / "w" / "mask_dict.json").is_file()


@pytest.mark.parametrize(("videos", "train", "valid"), [(1, 1, 0), (2, 1, 1), (3, 2, 1)])
def test_small_worlds_have_both_splits_from_two_videos_up(tmp_path, videos, train, valid):
    counts = build_world(tmp_path / "w", seed=1, **{**SMALL, "videos": videos})["counts"]
    assert (counts["train"]["videos"], counts["valid"]["videos"]) == (train, valid)


def test_the_stored_scenes_answer_the_stored_expressions(tmp_path):
    build_world(tmp_path / "w", seed=1, **SMALL)
    scenes = read_scenes(tmp_path / "w")
    for split in ("train", "valid"):
        meta = json.loads((tmp_path / "w" / f"meta_expressions_{split}_.json").read_text())["videos"]
        for video, entry in meta.items():
            truth = {expression.text: list(expression.targets) for expression in questions(scenes[video])}
            assert all(truth[e["exp"]] == e["obj_id"] for e in entry["expressions"].values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"videos": 0}, "at least 1"),
        ({"frames": (3, 8)}, "at least 4"),
        ({"frames": (8, 6)}, "frames are 8 to 6"),
        ({"size": (20, 200)}, "at least 56 pixels"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_worlds_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        build_world(tmp_path / "w", **{"seed": 1, **SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_counts_and_reports_errors(tmp_path, capsys):
    options = ["--out", str(tmp_path / "w"), "--videos", "2", "--size", "84x112", "--min-frames", "4"]
    options += ["--max-frames", "6", "--no-policy"]
    assert main(options) == 0
    assert "reasoning" in capsys.readouterr().out
    assert main([*options, "--seed", "7"]) == 2
    assert "holds another world (seed 0, not 7)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", "x", "--size", "84"])
    assert "'84' is not HEIGHTxWIDTH" in capsys.readouterr().err


def test_the_world_is_made_without_torch(tmp_path):
    code = f"""
import sys
from demo.world import main
from demo.writer import folder_in_place
main(["--out", {str(tmp_path / "w")!r}, "--videos", "1", "--size", "84x84", "--no-policy"])
assert not {{"torch", "transformers", "tokenizers"}} & set(sys.modules), "a heavy import"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
