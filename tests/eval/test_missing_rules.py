"""``--missing published``: what each benchmark's own script makes of a missing prediction, by hand; and warnings."""

import json
import shutil

import index_roots as roots
import pytest
import small_roots as small

from eval import mevis, reasonvos, refdavis, revos
from veason import mask_lines, masks
from veason.datasets import open_dataset
from veason.errors import DataError


def means(results):
    return results.summary()["overall"]["J"]


@pytest.fixture
def mevis_root(tmp_path):
    return small.write_mevis(tmp_path / "mevis")


def lose_video(pred):
    shutil.rmtree(pred / "v1")


def lose_expression(pred):
    shutil.rmtree(pred / "v1/1")


def lose_frame(pred):
    (pred / "v1/0/00001.png").unlink()


@pytest.mark.parametrize(
    ("lose", "zeros", "dropped"),
    [(lose_video, ["v1/0", "v1/1", "v1/2"], []), (lose_expression, [], ["v1/1"]), (lose_frame, [], ["v1/0"])],
)
def test_mevis_counts_a_missing_video_and_drops_a_missing_expression(mevis_root, tmp_path, lose, zeros, dropped):
    pred = small.predict_mevis(tmp_path / "pred")
    lose(pred)
    results = mevis.evaluate(mevis_root, pred, missing="published")
    assert [row.key for row in results.rows if row.problem] == zeros
    scores = dict(zip(small.MEVIS_SAID, small.MEVIS_J, strict=True))
    counted = [0.0 if key in zeros else j for key, j in scores.items() if key not in dropped]
    assert means(results) == pytest.approx(100 * sum(counted) / len(counted))
    assert results.counts | {"missing": len(zeros + dropped), "skipped": len(dropped)} == results.counts
    protocol = results.summary()["protocol"]
    assert protocol["missing"] == "published"
    assert protocol["published"].startswith("a missing video counts as zero")
    assert "published" not in mevis.evaluate(mevis_root, pred).summary()["protocol"]


def test_mevis_rule_on_a_file_of_rles(mevis_root, tmp_path):
    """A video without any line is missing as a whole; one with a line of another expression is not."""
    with open(tmp_path / "masks.jsonl", "w") as file:
        for sample in open_dataset("mevis", mevis_root):
            if sample.key == "v1/0":
                rles = [masks.encode(mask) for mask in small.MEVIS_SAID[sample.key]]
                file.write(json.dumps(mask_lines.record(sample, rles)) + "\n")
    results = mevis.evaluate(mevis_root, tmp_path / "masks.jsonl", missing="published")
    assert [(row.key, row.problem is None) for row in results.rows] == [("v1/0", True), ("v2/0", False)]


def test_reasonvos_drops_what_is_missing(tmp_path):
    root = small.write_reasonvos(tmp_path / "reasonvos")
    pred = small.predict_reasonvos(tmp_path / "p")
    shutil.rmtree(next(iter(sorted(path for path in pred.rglob("*") if path.name == "1" and path.is_dir()))))
    published, skip = (reasonvos.evaluate(root, pred, missing=missing) for missing in ("published", "skip"))
    assert means(published) == means(skip) > means(reasonvos.evaluate(root, pred))
    assert published.counts["skipped"] >= 1


def test_revos_counts_zero(world, tmp_path):
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    shutil.rmtree(pred / "MOSE/b/1")
    (pred / "UVO/all/-a_1/0/00000.png").unlink()
    zero, published = (revos.evaluate(world.root, pred, missing=missing) for missing in ("zero", "published"))
    assert published.rows == zero.rows
    assert published.counts["skipped"] == 0


def test_refdavis_binary_as_mevis_and_unsupervised_breaks_off(tmp_path):
    root = roots.write_refdavis(tmp_path / "gt")
    pred = roots.predict(open_dataset("refdavis", root), tmp_path / "pred", lambda key, t: None)
    shutil.rmtree(pred / "v/5")
    assert refdavis.evaluate(root, pred, protocol="binary", missing="published").counts["skipped"] == 1
    shutil.rmtree(pred / "w")
    results = refdavis.evaluate(root, pred, protocol="binary", missing="published")
    assert results.counts | {"missing": 5, "skipped": 1, "scored": 11} == results.counts
    assert means(results) == pytest.approx(100 * 7 / 11)
    with pytest.raises(DataError, match="the benchmark's script: nothing may be missing"):
        refdavis.evaluate(root, pred, protocol="unsupervised", missing="published")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_published_scripts_do_not_look_at_is_a_warning(world, tmp_path, capsys, workers):
    """Frames that are not sorted, an expression without words, a mask beyond the last frame: scored, and said once."""
    pred = world.predict(tmp_path / "p", lambda mask: mask)
    meta, tracks = world.root / "meta_expressions_valid_.json", world.root / "mask_dict.json"
    content = json.loads(meta.read_text())
    content["videos"]["MOSE/b"]["frames"].reverse()
    content["videos"]["UVO/all/-a_1"]["expressions"]["2"]["exp"] = ""
    meta.write_text(json.dumps(content))
    (world.root / "mask_dict_foreground.json").unlink()
    found = json.loads(tracks.read_text())
    found["101"].append(None)
    tracks.write_text(json.dumps(found))
    options = ["--gt", world.root, "--pred", pred, "--out", tmp_path / "out", "--workers", workers]
    assert revos.main([str(option) for option in options]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("warning: ") for line in lines)
    for words in ("not sorted", "no text", "more masks than frames"):
        assert sum(words in line for line in lines) == 1
