"""Ref-YouTube-VOS valid scored here: plain J and F by hand, and what has no ground truth."""

import json

import index_roots as roots
import pytest
import small_roots as small

from eval import refytvos
from veason.datasets import open_dataset

FRAMES = ("00000", "00005")


@pytest.fixture
def root(tmp_path):
    """`v1` of valid with two objects, the second in one frame only; `v2` is test's and has no ground truth."""
    root = roots.write_refytvos(tmp_path / "gt")
    asked = {"0": {"exp": "a square", "obj_id": "1"}, "1": {"exp": "another", "obj_id": "2"}}
    roots.write_expressions(root, "valid", {"v1": {"expressions": asked, "frames": list(FRAMES)}})
    roots.write_expressions(root, "test", {"v2": {"expressions": {"0": {"exp": "it"}}, "frames": list(FRAMES)}})
    roots.write_index(root / "valid/Annotations/v1/00000.png", {1: small.SQUARE, 2: small.OTHER})
    roots.write_index(root / "valid/Annotations/v1/00005.png", {1: small.SQUARE})
    meta = json.loads((root / "meta_expressions/valid/meta_expressions.json").read_text())
    meta["videos"]["v2"] = {"expressions": {"0": {"exp": "it"}}, "frames": list(FRAMES)}
    (root / "meta_expressions/valid/meta_expressions.json").write_text(json.dumps(meta))
    return root


def run(root, pred, out, *options):
    return refytvos.main([str(o) for o in ("--gt", root, "--pred", pred, "--out", out, "--workers", 1, *options)])


def test_j_and_f_by_hand(root, tmp_path, capsys):
    """Expression 0 shifted in one of two frames; 1 true where it is and something where it is not: 1 and 0."""
    small.write_masks(tmp_path / "p/v1/0", FRAMES, [small.SHIFTED, small.SQUARE])
    small.write_masks(tmp_path / "p/v1/1", FRAMES, [small.OTHER, small.OTHER])
    assert run(root, tmp_path / "p", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out/results.json").read_text())
    j, f = 100 * ((small.SHIFTED_J + 1) / 2 + 0.5) / 2, 100 * ((small.SHIFTED_F + 1) / 2 + 0.5) / 2
    assert summary["overall"] == pytest.approx({"J": j, "F": f, "JF": (j + f) / 2})
    assert (summary["dataset"], summary["split"], summary["protocol"]["name"]) == ("refytvos", "valid", "refytvos")
    assert summary["counts"] | {"videos": 1, "expected": 2, "scored": 2} == summary["counts"]
    assert {"meta", "annotations"} <= summary["ground_truth_sha256"].keys()
    assert "Ref-YouTube-VOS valid" in capsys.readouterr().out


def test_train_has_ground_truth_too(root, tmp_path):
    pred = roots.predict(open_dataset("refytvos", root, split="train"), tmp_path / "p", lambda key, t: None)
    assert refytvos.evaluate(root, pred, split="train").summary()["overall"]["JF"] == 100.0


def test_without_ground_truth_it_is_one_line_that_says_where_it_is(tmp_path, capsys):
    root = roots.write_refytvos(tmp_path / "gt")  # as it was before March 2026
    small.write_masks(tmp_path / "p/v1/0", FRAMES, [small.SQUARE, small.SQUARE])
    assert run(root, tmp_path / "p", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "published in March 2026" in line
    assert "python -m eval.submit --dataset refytvos" in line


def test_there_is_no_published_script(root, tmp_path, capsys):
    small.write_masks(tmp_path / "p/v1/0", FRAMES, [small.SQUARE, small.SQUARE])
    assert run(root, tmp_path / "p", tmp_path / "out", "--missing", "published") == 2
    assert "refytvos has no published script" in capsys.readouterr().err
