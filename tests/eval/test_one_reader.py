"""Predictions and ground truth of every benchmark are read through `veason.mask_png`, in evaluations of any size."""

import ast
import zlib
from pathlib import Path

import cv2
import index_roots as roots
import numpy as np
import pytest
import small_roots as small
from PIL import ImageFile

from eval import mevis, reasonvos, refdavis, revos, scoring
from veason import mask_png
from veason.datasets import open_dataset

ROOT = Path(__file__).parents[2]
DECODERS = {"imread", "imdecode", "imreadmulti"}


@pytest.fixture
def decoded(monkeypatch):
    """Grows by the bytes of each PNG that the reader decodes; any other decoder fails."""
    seen, decode = [], mask_png._decode

    def counted(data, size):
        seen.append(data)
        return decode(data, size)

    monkeypatch.setattr(mask_png, "_decode", counted)
    for name in DECODERS:
        monkeypatch.setattr(cv2, name, lambda *_: pytest.fail("OpenCV decodes a mask"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("Pillow decodes a mask"))
    return seen


def pngs(*folders):
    """The bytes of every PNG below some folders."""
    return {path.read_bytes() for folder in folders for path in folder.rglob("*.png")}


def test_mevis(tmp_path, decoded):
    root, pred = small.write_mevis(tmp_path / "gt"), small.predict_mevis(tmp_path / "pred")
    assert len(mevis.evaluate(root, pred).rows) == 4
    assert len(decoded) == 2 * 3 + 1  # frames of v1 for its three expressions, and of v2
    assert set(decoded) == pngs(pred)


def test_reasonvos(tmp_path, decoded):
    root, pred = small.write_reasonvos(tmp_path / "gt"), small.predict_reasonvos(tmp_path / "pred")
    assert len(reasonvos.evaluate(root, pred).rows) == 4
    assert pngs(root / "Annotations") < set(decoded)


@pytest.mark.parametrize("protocol", ["binary", "unsupervised"])
def test_refdavis(tmp_path, decoded, protocol):
    root = roots.write_refdavis(tmp_path / "gt")
    pred = roots.predict(open_dataset("refdavis", root), tmp_path / "pred", lambda key, t: None)
    decoded.clear()
    assert refdavis.evaluate(root, pred, protocol=protocol).complete
    assert set(decoded) == pngs(root / "valid/Annotations", pred)


def test_revos(world, tmp_path, decoded):
    dataset = open_dataset("revos", world.root)
    for sample in dataset:
        small.write_masks(tmp_path / sample.key, sample.frames, [np.zeros(sample.size)] * len(sample))
    assert revos.evaluate(world.root, tmp_path).complete
    assert len(decoded) == sum(len(sample) for sample in dataset)


@pytest.mark.parametrize("protocol", ["binary", "unsupervised"])
def test_truth_of_grey_levels_is_no_score_of_100_for_nothing(tmp_path, protocol):
    root = roots.write_refdavis(tmp_path / "gt", {"w": [{1: small.SQUARE}]})
    dataset = open_dataset("refdavis", root)
    for sample in dataset:
        small.write_masks(tmp_path / "pred" / sample.key, sample.frames, [small.NOTHING])
    small.write_masks(root / "valid/Annotations/w", ["00000"], [small.SQUARE])  # 0 and 255
    results = refdavis.evaluate(root, tmp_path / "pred", protocol=protocol)
    assert not results.complete
    assert all("valid/Annotations/w" in problem.reason for problem in results.errors)
    assert len(results.errors) == 4


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
def test_a_wrong_adler_32_is_an_error_at_every_size(tmp_path, monkeypatch, compile_from):
    monkeypatch.setattr(scoring, "COMPILE_FROM", compile_from)
    root, pred = small.write_mevis(tmp_path / "gt"), small.predict_mevis(tmp_path / "pred")
    path = pred / "v1/1/00001.png"
    data = path.read_bytes()
    at = data.index(b"IDAT")
    stop = at + 4 + int.from_bytes(data[at - 4 : at])
    chunk = data[at : stop - 1] + bytes([data[stop - 1] ^ 1])
    path.write_bytes(data[:at] + chunk + zlib.crc32(chunk).to_bytes(4) + data[stop + 4 :])
    results = mevis.evaluate(root, pred)
    mask_png.use_compiled(False)
    assert [problem.sample for problem in results.errors] == ["v1/1"]
    assert "v1/1/00001.png: the PNG is damaged" in results.errors[0].reason


def test_no_other_file_of_the_evaluation_or_the_readers_decodes_pictures():
    for path in [*(ROOT / "eval").rglob("*.py"), *(ROOT / "veason/datasets").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not called & DECODERS, path
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "PIL"
                 for alias in node.names}  # fmt: skip
        assert not names or path.name == "pictures.py", path
