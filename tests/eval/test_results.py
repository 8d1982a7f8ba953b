"""The one record of results: each protocol's files read back, what is refused, and one hash for many files."""

import csv
import dataclasses
import hashlib
import json

import index_roots as roots
import pytest
import small_roots as small

from eval import mevis, reasonvos, refdavis, results, revos, scores_file, vicas
from veason.datasets import open_dataset
from veason.errors import DataError


def of_revos(world, tmp_path):
    return revos.evaluate(world.root, world.predict(tmp_path / "p", lambda mask: mask))


def of_mevis(world, tmp_path):
    pred = small.predict_mevis(tmp_path / "p")
    (pred / "v1/1/00000.png").unlink()
    return mevis.evaluate(small.write_mevis(tmp_path / "gt"), pred)


def of_reasonvos(world, tmp_path):
    return reasonvos.evaluate(small.write_reasonvos(tmp_path / "gt"), small.predict_reasonvos(tmp_path / "p"))


def of_refdavis(world, tmp_path, protocol="binary"):
    root = roots.write_refdavis(tmp_path / "gt")
    said = {"v/0": small.OTHER, "w/1": small.SHIFTED}
    pred = roots.predict(open_dataset("refdavis", root), tmp_path / "p", lambda key, t: said.get(key))
    return refdavis.evaluate(root, pred, protocol=protocol)


def of_refdavis_unsupervised(world, tmp_path):
    return of_refdavis(world, tmp_path, "unsupervised")


def of_davis_maps(world, tmp_path):
    for video, frames in roots.DAVIS_LAYERS.items():
        for t, layers in enumerate(frames):
            roots.write_index(tmp_path / f"maps/{video}/{t:05d}.png", {**layers, 1: small.SHIFTED})
    root = roots.write_refdavis(tmp_path / "gt")
    return refdavis.evaluate(root, tmp_path / "maps", protocol="unsupervised")


def of_vicas(world, tmp_path, j_and_f=False):
    tracks = [[small.SQUARE, small.SHIFTED]], [[small.SQUARE, small.SQUARE], [small.OTHER, small.NOTHING]]
    for number in (3, 12):
        roots.write_json(tmp_path / f"p/{number:06d}.json", roots.vicas_said(number, *tracks))
    root = roots.write_vicas(tmp_path / "gt")
    return vicas.evaluate(root, tmp_path / "p", split="v1.0/test", j_and_f=j_and_f)


def of_vicas_with_j_and_f(world, tmp_path):
    return of_vicas(world, tmp_path, j_and_f=True)


EVERY = [
    of_revos,
    of_mevis,
    of_reasonvos,
    of_refdavis,
    of_refdavis_unsupervised,
    of_davis_maps,
    of_vicas,
    of_vicas_with_j_and_f,
]


@pytest.mark.parametrize("evaluate", EVERY)
def test_results_read_back_are_those_that_were_written(world, tmp_path, evaluate):
    found = evaluate(world, tmp_path)
    found.write(tmp_path / "scores")
    back = scores_file.read(tmp_path / "scores")
    assert back.to_json() == found.to_json() == (tmp_path / "scores/results.json").read_text()
    assert back.to_csv() == found.to_csv() == (tmp_path / "scores/results.csv").read_text()
    assert [(row.key, row.group, row.problem) for row in back.rows] == [
        (row.key, row.group, row.problem) for row in found.rows
    ]
    assert {name: len(back.members(name)) for name in back.groups} == {
        name: len(found.members(name)) for name in found.groups
    }
    assert scores_file.read_summary(tmp_path / "scores/results.json").to_json() == found.to_json()


@pytest.mark.parametrize("evaluate", [of_revos, of_mevis, of_reasonvos, of_refdavis_unsupervised])
def test_files_of_two_evaluations_are_refused(world, tmp_path, evaluate):
    found = evaluate(world, tmp_path)
    first, *rest = found.rows
    for rows in (found.rows[1:], (dataclasses.replace(first, j=first.j / 2 + 1), *rest)):
        found.write(tmp_path / "scores")
        changed = dataclasses.replace(found, rows=rows)
        (tmp_path / "scores/results.csv").write_text(changed.to_csv())
        with pytest.raises(DataError, match=r"results\.csv and results\.json are of different evaluations; run: it"):
            scores_file.read(tmp_path / "scores", remedy="run: it")


def test_scores_that_cannot_be_read_say_what_to_do(world, tmp_path):
    scores = tmp_path / "scores"
    with pytest.raises(DataError, match=r"results\.json: no such file: the run is not scored yet; score the run again"):
        scores_file.read(scores)
    of_revos(world, tmp_path).write(scores)
    whole = (scores / "results.json").read_text()
    (scores / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"results\.json: not the results\.json of an evaluator"):
        scores_file.read(scores)
    (scores / "results.json").write_text(whole)
    (scores / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"results\.csv: not the results\.csv of an evaluator"):
        scores_file.read(scores)
    broken = {**json.loads(whole), "complete": False, "errors": [{"sample": "v/0", "reason": "it is cut off"}]}
    broken["counts"]["errors"] = 1
    (scores / "results.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"1 predictions could not be scored, first v/0: it is cut off"):
        scores_file.read(scores)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("overall",), None),  # None: the entry is not there
        (("overall",), {}),
        (("referring", "JF"), None),
        (("protocol", "prediction_values"), [[]]),
    ],
)
def test_a_summary_that_lacks_something_is_refused(world, tmp_path, place, value):
    of_revos(world, tmp_path).write(tmp_path / "scores")
    path = tmp_path / "scores/results.json"
    content = json.loads(path.read_text())
    *above, last = place
    entry = content[above[0]] if above else content
    entry.pop(last)
    if value is not None:
        entry[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"not the results\.(json|csv) of an evaluator here .*; score the run again"):
        scores_file.read(tmp_path / "scores")


@pytest.mark.parametrize(("column", "value"), [("J", "x"), ("R", ""), ("type_id", "inf")])
def test_a_table_with_a_cell_that_is_no_score_is_refused(world, tmp_path, column, value):
    of_revos(world, tmp_path).write(tmp_path / "scores")
    path = tmp_path / "scores/results.csv"
    with path.open(newline="") as file:
        header, first, *rows = csv.reader(file)
    first[header.index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, first, *rows])
    with pytest.raises(DataError, match=r"not the results\.csv of an evaluator here .*; score the run again"):
        scores_file.read(tmp_path / "scores")


def test_names_and_contents_count_and_the_order_does_not(tmp_path):
    for name, text in (("b/1.txt", "one"), ("a.txt", "two")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = [tmp_path / "b/1.txt", tmp_path / "a.txt"]
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"two", b"one")]
    expected = hashlib.sha256(f"a.txt {hashes[0]}\nb/1.txt {hashes[1]}\n".encode()).hexdigest()
    assert results.sha256_of_files(tmp_path, paths) == results.sha256_of_files(tmp_path, paths[::-1]) == expected
    assert results.sha256_of_files(tmp_path, paths[:1]) != expected
