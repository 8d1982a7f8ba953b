"""The result table: what stands in a cell, what is marked measured, what is refused."""

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest

from eval import published, revos, table
from eval.results import Results, Row, means, sample_counts
from veason.doctor.published import Size


def same(mask):
    return mask


def shifted(mask):
    return np.roll(mask, (2, 3), (0, 1))


@pytest.fixture
def runs(world, tmp_path, monkeypatch):
    """Two scored run folders, `good` and `worse`; nobody says how large the world's split is."""
    monkeypatch.setattr(table, "SPLITS", {})
    for name, say in (("good", same), ("worse", shifted)):
        world.predict(tmp_path / name / "Annotations", say)
        revos.evaluate(world.root, tmp_path / name).write(tmp_path / name / "scores")
    return tmp_path


def run(*arguments):
    return table.main([*map(str, arguments)])


def change(path, **changes):
    """Set entries of a results.json; a dictionary is merged into what is there."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def test_markdown_has_published_and_measured_rows(runs, capsys):
    assert run(runs / "good", f"mine | too={runs / 'worse' / 'scores' / 'results.json'}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### ReVOS, valid"
    assert lines[2] == "| method | referring J&F | reasoning J&F | overall J&F | R | source |"
    assert "| Veason-R1-7B | 63.6 | 59.0 | 61.3 | 27.0 | Veason-R1 paper, arXiv 2508.11538 |" in lines
    assert "| Omni-R1 | 64.1 | 53.7 | 58.9 | – | Veason-R1 paper, arXiv 2508.11538 |" in lines
    (good,) = (line for line in lines if line.startswith("| **good** |"))
    assert good.startswith("| **good** | 100.0 | 100.0 | 100.0 | ")
    assert good.endswith("| measured: 6 of 6 expressions |")
    assert any(line.startswith(r"| **mine \| too** |") for line in lines)
    assert "robustness visa" in lines[-1]
    assert "sha256 of masks" in lines[-1]


def test_json_is_unrounded_and_says_what_was_measured(runs, tmp_path):
    assert run(runs / "worse", "--format", "json", "--out", tmp_path / "t.json") == 0
    (content,) = json.loads((tmp_path / "t.json").read_text())
    summary = json.loads((runs / "worse" / "scores" / "results.json").read_text())
    row = content["rows"][-1]
    assert (row["method"], row["measured"]) == ("worse", True)
    assert row["values"]["overall J&F"] == summary["overall"]["JF"]
    assert row["values"]["R"] == summary["overall"]["R"]
    assert [row["measured"] for row in content["rows"]] == [False] * 7 + [True]


def test_latex_is_escaped(runs, capsys):
    assert run(f"a_b & 50%={runs / 'good'}", "--format", "latex") == 0
    text = capsys.readouterr().out
    assert r"\textbf{a\_b \& 50\%} & 100.0 & 100.0 & 100.0 & " in text
    assert r"method & referring J\&F & reasoning J\&F & overall J\&F & R & source \\" in text
    assert text.count(r"\midrule") == 2
    assert r"LISA-7B & 45.7 & 36.1 & 40.9 & 9.3 & published \\" in text


def test_binary_robustness_is_another_column(world, runs, capsys):
    revos.evaluate(world.root, runs / "good", robustness="binary").write(runs / "binary")
    assert run(runs / "binary") == 0
    out = capsys.readouterr().out
    assert "| method | referring J&F | reasoning J&F | overall J&F | R | R (binary) | source |" in out
    assert "| **binary** | 100.0 | 100.0 | 100.0 | – | 100.0 |" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"robustness": "binary"}}, "protocol: robustness"),
        ({"protocol": {"prediction_values": {"0/1": 6}}}, "grey values of the masks"),
        ({"protocol": {"frames": "all but the first"}}, "protocol: frames"),
        ({"split": "train"}, "split"),
        ({"ground_truth_sha256": {"masks": "0" * 64}}, "data: sha256 of masks"),
        ({"complete": False}, "could not be scored"),
        ({"dataset": "another"}, "no table for the data set 'another'"),
        ({"overall": {"J": 101.0}}, "not the results.json of an evaluator"),
        ({"counts": 3}, "not the results.json of an evaluator"),
    ],
)
def test_what_does_not_belong_together_is_refused(runs, capsys, changes, message):
    change(runs / "worse" / "scores" / "results.json", **changes)
    assert run(runs / "good", runs / "worse") == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "worse" in said.err
    assert said.out == ""


def test_missing_predictions_are_said_and_two_ways_to_count_them_do_not_mix(world, runs, capsys):
    one, other = (runs / name / "Annotations" / "MOSE" / "b" / "0" / "00000.png" for name in ("good", "worse"))
    one.unlink()
    revos.evaluate(world.root, runs / "good").write(runs / "good" / "scores")
    assert run(runs / "good", runs / "worse") == 0
    assert "measured: 6 of 6 expressions, 1 missing (zero) |" in capsys.readouterr().out
    other.unlink()
    revos.evaluate(world.root, runs / "worse", missing="skip").write(runs / "worse" / "scores")
    assert run(runs / "good", runs / "worse") == 2
    assert "missing predictions" in capsys.readouterr().err


def test_places_without_scores_and_names_given_twice(runs, tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 2
    assert "holds no results.json" in capsys.readouterr().err


def advised(text):
    """The arguments of the commands that an error message gives."""
    return [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m eval.table ")]


def test_names_given_twice_are_refused_with_a_command_that_works(runs, capsys):
    assert run(f"a={runs / 'good'}", f"a={runs / 'worse'}") == 2
    said = capsys.readouterr().err
    assert "2 scores on revos are called 'a'" in said
    (command,) = advised(said)
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "| **a-1** |" in out
    assert "| **a-2** |" in out


def test_two_protocols_of_one_run_are_refused_with_commands_that_work(tmp_path, capsys):
    """As `eval.refdavis` leaves them: a folder for each protocol below the scores of one run."""
    for name in ("binary", "unsupervised"):
        results = dataclasses.replace(results_of("refdavis", [50.0]), protocol={"name": f"refdavis-{name}"})
        results.write(tmp_path / "run/scores" / name)
    assert run(f"3B={tmp_path / 'run'}") == 2
    said = capsys.readouterr().err
    assert "refdavis-binary, refdavis-unsupervised" in said
    assert len(advised(said)) == 2
    for command in advised(said):
        assert run(*command) == 0
        assert "| **3B** | 50.0 |" in capsys.readouterr().out


def test_every_pair_of_rows_is_compared(world, runs, capsys):
    """`zero` and `skip` each agree with a run that misses nothing, and not with each other: refused in any order."""
    for name, missing in (("good", "zero"), ("worse", "skip")):
        shutil.rmtree(runs / name / "Annotations/MOSE/b/0")
        revos.evaluate(world.root, runs / name, missing=missing).write(runs / name / "scores")
    world.predict(runs / "whole/Annotations", same)
    revos.evaluate(world.root, runs / "whole").write(runs / "whole/scores")
    assert run(runs / "whole", runs / "good") == 0
    assert run(runs / "whole", runs / "worse") == 0
    capsys.readouterr()
    assert run(runs / "whole", runs / "good", runs / "worse") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "missing predictions: zero (good), skip (worse)" in said.err


def test_the_rules_are_those_of_all_rows(world, runs, capsys):
    shutil.rmtree(runs / "worse/Annotations/MOSE/b/0")
    revos.evaluate(world.root, runs / "worse").write(runs / "worse/scores")
    assert run(runs / "good", runs / "worse") == 0
    assert "missing predictions zero" in capsys.readouterr().out.splitlines()[-1]


def test_a_part_of_a_split_is_not_set_in_bold_beside_published_rows(world, runs, monkeypatch, capsys):
    """Two videos with 6 expressions, where the published split has 416 videos; in every format."""
    monkeypatch.setattr(table, "SPLITS", {("revos", "valid"): Size(416)})
    assert run(f"mine={runs / 'good'}") == 0
    out = capsys.readouterr().out
    assert "| *mine (part)* | 100.0 | 100.0 | 100.0 | " in out
    assert "expressions; a part: 2 videos, the published split has 416 |" in out
    assert "A row marked as a part" in out
    assert "**mine**" not in out
    assert run(f"mine={runs / 'good'}", "--format", "latex") == 0
    out = capsys.readouterr().out
    assert r"\textit{mine (part)} & 100.0" in out
    assert r"\textbf" not in out
    assert run(f"mine={runs / 'good'}", "--format", "json") == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert content["rows"][-1]["part"] is True
    monkeypatch.setattr(table, "SPLITS", {("revos", "valid"): Size(2, 6)})
    assert run(f"mine={runs / 'good'}") == 0
    assert "| **mine** |" in capsys.readouterr().out


def test_rows_of_another_split_than_the_published_ones_say_so(runs, capsys):
    change(runs / "good/scores/results.json", split="train")
    assert run(runs / "good") == 0
    assert "The published rows are of the split valid, the measured ones of train." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"), (b"<!DOCTYPE html><html>", "a web page")],
)
def test_a_file_of_something_else_is_named(tmp_path, capsys, content, words):
    (tmp_path / "results.json").write_bytes(content)
    assert run(tmp_path) == 2
    assert words in capsys.readouterr().err


def results_of(dataset, values):
    rows = tuple(Row("v", "0", "x", value, value, value) for value in values)
    return Results(
        benchmark=dataset,
        dataset=dataset,
        split="s",
        missing_policy="zero",
        rows=rows,
        groups={"overall": means(rows)},
        missing=(),
        errors=(),
        counts={"videos": 1, **sample_counts(len(rows), (), (), len(rows))},
        protocol={"name": dataset},
        gt_sha256={"meta": "a" * 64},
    )


def test_every_data_set_has_its_own_table(runs, tmp_path, capsys):
    """Means by hand: (50 + 60) / 2 and 70; a method may be in several tables."""
    for dataset, values in (("mevis", [50.0, 60.0]), ("reasonvos", [70.0])):
        results_of(dataset, values).write(tmp_path / dataset)
    assert run(f"m={runs / 'good'}", f"m={tmp_path / 'reasonvos'}", f"m={tmp_path / 'mevis'}") == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("### ")] == [
        "### ReVOS, valid",
        "### MeViS, s",
        "### ReasonVOS, s",
    ]
    assert "| **m** | 55.0 | 55.0 | 55.0 | measured: 2 of 2 expressions |" in out
    assert "| **m** | 70.0 | 70.0 | 70.0 | measured: 1 of 1 expressions |" in out
    assert "does not say which split of MeViS" in out


def test_published_rows_are_as_printed():
    """J&F of a printed row is the mean of its J and F, and overall that of the two groups, to the printed digit."""
    for rows in published.ROWS.values():
        for row in rows:
            values = row.values
            if "F" in values:
                assert values["J&F"] == pytest.approx((values["J"] + values["F"]) / 2, abs=0.11)
            if "overall J&F" in values:
                assert values["overall J&F"] == pytest.approx(
                    (values["referring J&F"] + values["reasoning J&F"]) / 2, abs=0.11
                )
