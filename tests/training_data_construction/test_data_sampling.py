"""Sampling of training expressions: the mix, the size, the seed, and what it refuses."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_data_construction import data_sampling
from veason import atomic
from veason.datasets import open_dataset
from veason.errors import DataError

ROOT = Path(__file__).parents[2]
CELLS = [(0, "1"), (0, ">1"), (1, "1"), (1, ">1"), (2, "0")]
OBJECTS = {"0": [], "1": [0], ">1": [0, 1]}


def meta(counts: dict, *, per_video: int = 7) -> dict:
    """A meta document with this many expressions per cell, dealt out over videos whose keys have slashes and dashes."""
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    videos = {}
    for i, (type_id, number) in enumerate(cells):
        entry = videos.setdefault(
            f"UVO/all/-v{i % -(-len(cells) // per_video)}",
            {"vid_id": i, "height": 48, "width": 64, "frames": ["00000", "00005"], "expressions": {}},
        )
        ids = OBJECTS[number]
        entry["expressions"][str(len(entry["expressions"]))] = {
            "exp": f"expression \u00e9 {i}", "obj_id": ids, "anno_id": [1000 + k for k in ids], "type_id": type_id,
        }  # fmt: skip
    return {"videos": videos}


@pytest.fixture
def large(tmp_path):
    """5,000 expressions whose two margins are independent: 60 % referring, 80 % with one object."""
    path = tmp_path / "meta_expressions_train_.json"
    path.write_text(json.dumps(meta({(0, "1"): 2400, (0, ">1"): 600, (1, "1"): 1600, (1, ">1"): 400})))
    return path


def run(source, *options, size=1000, name="select.json"):
    output = source.with_name(name)
    code = data_sampling.main(
        ["--input_json", str(source), "--output_json", str(output), "--target_size", str(size), *options]
    )
    return code, output


def cells(path):
    """Counts the expressions of each cell in a file, read as every later step reads it."""
    return Counter(data_sampling.cell_of(s) for s in open_dataset("revos", path.parent, split="train", meta=path))


@pytest.mark.parametrize("size", [1000, 997, 3, 5000])
def test_the_mix_is_that_of_the_whole(large, size):
    code, output = run(large, size=size)
    found = cells(output)
    assert code == 0
    assert found.total() == size
    for cell, share in {(0, "1"): 0.48, (0, ">1"): 0.12, (1, "1"): 0.32, (1, ">1"): 0.08}.items():
        assert abs(found[cell] - share * size) <= 1


def test_entries_are_those_of_the_input(large):
    _, output = run(large)
    source, selected = (json.loads(path.read_text())["videos"] for path in (large, output))
    assert list(selected) == [video for video in source if video in selected]
    for video, entry in selected.items():
        assert entry["expressions"]  # no video without one
        assert {**entry, "expressions": None} == {**source[video], "expressions": None}
        assert entry["expressions"].items() <= source[video]["expressions"].items()


def test_the_seed_decides(large):
    files = [
        run(large, "--seed", seed, name=name)[1].read_bytes() for seed, name in (("1", "a"), ("1", "b"), ("2", "c"))
    ]
    assert files[0] == files[1] != files[2]


def test_quotas_round_and_the_largest_remainders_make_the_sum():
    """7 of 10 referring, 6 of 10 with one object: N = 5 wants 2.1, 1.4, 0.9, 0.6, so 2 + 1 + 1 + 1."""
    available = {(0, "1"): 4, (0, ">1"): 3, (1, "1"): 2, (1, ">1"): 1}
    assert data_sampling.quotas(available, 5) == {(0, "1"): 2, (0, ">1"): 1, (1, "1"): 1, (1, ">1"): 1}
    even = dict.fromkeys(CELLS[:4], 10)  # four times 1.5: rounding alone would give 8 instead of 6
    assert sorted(data_sampling.quotas(even, 6).values()) == [1, 1, 2, 2]


def test_what_a_cell_lacks_comes_from_the_others(tmp_path, capsys):
    """Half referring, half with one object, but only on the diagonal: the other two cells want 2 each and have none."""
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(meta({(0, "1"): 8, (1, ">1"): 8})))
    code, output = run(path, size=8)
    found = cells(output)
    assert code == 0
    assert found.total() == 8
    assert min(found[0, "1"], found[1, ">1"]) >= 2
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["referring,", ">1", "objects", "2", "0", "0", "25.00", "0.00"] in rows
    assert ["total", "8", "16", "8", "100.00", "100.00"] in rows


def test_absent_targets_come_only_when_asked_for(tmp_path, capsys):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(meta({(0, "1"): 40, (1, "1"): 40, (2, "0"): 20})))
    assert cells(run(path, size=50)[1]) == {(0, "1"): 25, (1, "1"): 25}
    assert "left out: 20 without a target" in capsys.readouterr().out
    assert cells(run(path, "--include-absent", size=50)[1]) == {(0, "1"): 20, (1, "1"): 20, (2, "0"): 10}


def test_excluded_and_objectless_expressions_are_never_taken(tmp_path, capsys):
    path, gone = tmp_path / "meta.json", tmp_path / "gone.txt"
    document = meta({(0, "1"): 5, (0, "0"): 2}, per_video=7)
    path.write_text(json.dumps(document))
    gone.write_text("# no target\nUVO/all/-v0/3\n")
    _, output = run(path, "--exclude", str(gone), size=4)
    assert set(json.loads(output.read_text())["videos"]["UVO/all/-v0"]["expressions"]) == {"0", "1", "2", "4"}
    out = capsys.readouterr().out
    assert "left out: 1 in the exclude file" in out
    assert "left out: 2 of a type with a target, but without an object" in out
    assert run(path, "--exclude", str(tmp_path / "none.txt"))[0] == 2


@pytest.mark.parametrize("size", [5001, 0, -1])
def test_a_size_that_the_pool_cannot_give(large, size, capsys):
    code, output = run(large, size=size)
    assert code == 2
    assert f"--target_size is {size}, the pool holds 5000 expressions" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("video", "exp_id"), [("../up", "0"), ("/etc", "0"), ("a\\b", "0"), ("a", "../0"), ("a//b", "0"), ("a", "\n")]
)
def test_names_that_leave_their_folder_are_refused(tmp_path, video, exp_id, capsys):
    entry = meta({(0, "1"): 1})["videos"]["UVO/all/-v0"]
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"videos": {video: {**entry, "expressions": {exp_id: entry["expressions"]["0"]}}}}))
    assert run(path, size=1)[0] == 2
    assert "would leave its folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"videos": []}', '{"videos": {}}', "[" * 100_000])
def test_files_that_are_no_meta_file(tmp_path, text, capsys):
    path = tmp_path / "meta.json"
    path.write_text(text)
    assert run(path)[0] == 2
    assert f"error: {path}" in capsys.readouterr().err


def test_a_missing_file_and_an_output_in_the_place_of_the_input(large, capsys):
    assert run(large.with_name("nowhere") / "meta.json")[0] == 2
    assert "no such file" in capsys.readouterr().err
    before = large.read_bytes()
    assert run(large, name=large.name)[0] == 2
    assert "would replace --input_json" in capsys.readouterr().err
    assert large.read_bytes() == before


def test_an_expression_that_utf8_cannot_hold(tmp_path):
    path = tmp_path / "meta.json"
    document = meta({(0, "1"): 1})
    document["videos"]["UVO/all/-v0"]["expressions"]["0"]["exp"] = "the \ud800 cat"
    path.write_text(json.dumps(document))
    assert json.loads(run(path, size=1)[1].read_text()) == document


@given(
    sizes=st.lists(st.integers(0, 30), min_size=5, max_size=5).filter(any),
    part=st.floats(0, 1),
    seed=st.integers(-(2**70), 2**70),
)
def test_always_the_exact_size_from_the_pool_without_a_duplicate(sizes, part, seed):
    pool = {cell: [f"{cell}/{i}" for i in range(size)] for cell, size in zip(CELLS, sizes, strict=True) if size}
    target = max(1, int(part * sum(sizes)))
    taken = data_sampling.draw(pool, target, seed=seed)
    keys = [key for keys in taken.values() for key in keys]
    assert len(keys) == len(set(keys)) == target
    assert all(set(keys) <= set(pool[cell]) for cell, keys in taken.items())
    assert taken == data_sampling.draw(pool, target, seed=seed)
    wanted = data_sampling.quotas({cell: len(keys) for cell, keys in pool.items()}, target)
    assert sum(wanted.values()) == target
    assert all(len(taken[cell]) >= min(wanted[cell], len(pool[cell])) for cell in pool)
    with pytest.raises(DataError, match="the pool holds"):
        data_sampling.draw(pool, sum(sizes) + 1, seed=seed)


@pytest.mark.parametrize(
    "how", [["training_data_construction/data_sampling.py"], ["-m", "training_data_construction.data_sampling"]]
)
def test_both_ways_to_run_it(large, how):
    output = large.with_name("select.json")
    command = [sys.executable, *how, "--input-json", large, "--output-json", output, "--target-size", "10"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.endswith(f"wrote {output}\n")
    assert cells(output).total() == 10


def test_two_writers_of_one_output(large, tmp_path, capsys):
    code, output = run(large, size=10)
    before = output.read_bytes()
    with atomic.Lock(output.with_name(f".{output.name}.lock")):
        assert run(large, size=20)[0] == 2
    assert "another process is writing here" in capsys.readouterr().err
    assert (code, output.read_bytes()) == (0, before)


def test_a_folder_that_cannot_be_written_is_one_line(large, monkeypatch, capsys):
    def refuse(path, data):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "write_bytes", refuse)
    assert run(large, size=10)[0] == 2
    assert "permission denied; choose a place that this user may read and write" in capsys.readouterr().err


def test_a_pipe_as_an_input_does_not_hang(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.json")
    assert run(tmp_path / "pipe.json", size=1)[0] == 2
    assert "no regular file (a pipe" in capsys.readouterr().err
