"""No training data are made of what a benchmark scores, by any of the three commands, unless that is asked for."""

import shutil

import pytest

from training_data_construction import build_sft, data_sampling, seed_cot_generation
from veason.command import run_command
from veason.datasets import scored
from veason.errors import DataError


def sample(meta, root, out, *options):
    return data_sampling.main(
        ["--input_json", str(meta), "--output_json", str(out / "select.json"), "--target_size", "5", *options]
    )


def ask(meta, root, out, *options):
    arguments = ["--meta_json", meta, "--mask_dict", root / "mask_dict.json", "--data_path", root / "JPEGImages"]
    arguments += ["--output_json", out / "cot.json", "--dry-run", *options]
    return run_command(lambda: seed_cot_generation.main([str(argument) for argument in arguments]))


def make_data(meta, root, out, *options):
    """There are no records, which the command says only once the split may be used."""
    (out / "cot.json").write_text("[]")
    arguments = ["--cot", out / "cot.json", "--data-root", root, "--meta", meta, "--output", out / "data", *options]
    return build_sft.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [sample, ask, make_data])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_scored_file_is_refused_by_its_name_and_by_its_contents(world, tmp_path, capsys, command, renamed):
    meta = world / "meta_expressions_valid_.json"
    if renamed:
        meta = world / "mine.json" if command is sample else tmp_path / "mine.json"
        shutil.copy(world / "meta_expressions_valid_.json", meta)
    try:
        assert command(meta, world, tmp_path) == 2
        told = capsys.readouterr().err
        why = "are those of" if renamed else "by its name"
        assert why in told
        assert told.rstrip().endswith("--allow-scored-split allows it")
        assert not [path.name for path in tmp_path.iterdir() if path.name not in ("cot.json", "mine.json")]
        assert command(meta, world, tmp_path, scored.OPTION) == (2 if command is make_data else 0)  # 2: no records
        told = capsys.readouterr().err
        assert why in told
        assert ("no records" in told) == (command is make_data)
    finally:
        (world / "mine.json").unlink(missing_ok=True)


def test_the_split_to_train_on_goes_without_a_word(world):
    assert scored.check_file(world / "meta_expressions_train_.json", roots=[world], allowed=False) == []


def test_a_scored_file_that_cannot_be_read_is_said(world, tmp_path):
    (tmp_path / "meta_expressions_valid_.json").write_text("<html>")
    meta = shutil.copy(world / "meta_expressions_train_.json", tmp_path / "train.json")
    [line] = scored.check_file(meta, roots=[tmp_path, tmp_path], allowed=False)
    assert line.endswith("whether it holds what is trained on was not looked at")
    with pytest.raises(DataError, match=r"valid_\.json: by its name"):
        scored.check_file(tmp_path / "meta_expressions_valid_.json", roots=[], allowed=False)
