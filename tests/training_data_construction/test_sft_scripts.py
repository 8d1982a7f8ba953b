"""The SFT scripts: what they ask of LLaMA-Factory, and a real run from records to a checkpoint that all can load."""

import fcntl
import os
import re
import shutil
import subprocess
import sys

import pytest
import sft_cases as cases
import torch
import yaml
from safetensors.torch import load_file, save_file

from inference.policies.engine import EnginePolicy
from training_data_construction import build_sft, sft_checkpoint
from veason import frames, prompt_settings
from veason.errors import DataError
from veason.types import Question
from verl.config import ModelConfig
from verl.engines import generation, pretrained
from verl.models import loading

SCRIPTS = cases.ROOT / "training_scripts"
TINY_ONLY = {"use_cpu", "disable_gradient_checkpointing"}


def settings(name):
    return yaml.safe_load((SCRIPTS / f"sft_{name}.yaml").read_text())


class TestSettings:
    def test_the_published_numbers(self):
        config = settings("qwen2_5_3b")
        assert config == settings("qwen2_5_7b")
        assert (config["lora_rank"], config["learning_rate"], config["lr_scheduler_type"]) == (8, 1e-4, "cosine")
        assert (config["gradient_accumulation_steps"], config["num_train_epochs"], config["bf16"]) == (8, 1, True)
        assert config["cutoff_len"] >= 7100 + 1024

    def test_no_path_and_the_same_keys_for_the_tiny_policy(self):
        """LLaMA-Factory refuses unknown keys, so the real run below holds for the large ones too."""
        keys = set(settings("qwen2_5_3b"))
        assert set(settings("tiny")) == keys | TINY_ONLY
        assert not keys & {"model_name_or_path", "dataset_dir", "output_dir"}


class TestArguments:
    """The scripts with a Python that prints its arguments, one a line, instead of training."""

    @staticmethod
    def run(script, *arguments, **paths):
        clean = {"PATH": os.environ["PATH"], "PYTHON": str(cases.ROOT / "tests/verl/print_arguments.sh")}
        return subprocess.run(
            ["bash", SCRIPTS / script, *arguments], capture_output=True, text=True, env={**clean, **paths}
        )

    @pytest.mark.parametrize(
        ("name", "dtype"), [("qwen2_5_3b", "bfloat16"), ("qwen2_5_7b", "bfloat16"), ("tiny", "float32")]
    )
    def test_train_merge_and_finish(self, name, dtype, tmp_path):
        here = str(tmp_path)
        done = self.run(f"run_sft_{name}.sh", "max_steps=3", MODEL_PATH=here, SFT_DATA=here, OUTPUT=f"{here}/o")
        given = [f"model_name_or_path={here}", f"dataset_dir={here}", f"output_dir={here}/o", "max_steps=3"]
        assert done.stdout.splitlines() == [
            "-m", "training_data_construction.sft_run", "start", f"{SCRIPTS}/sft_{name}.yaml", f"{here}/o", *given,
            "-m", "llamafactory.cli", "train", f"{SCRIPTS}/sft_{name}.yaml",
            *given, f"output_dir={here}/o/adapter",
            "-m", "training_data_construction.sft_run", "adapter", here, f"{here}/o/adapter",
            "-m", "llamafactory.cli", "export", "--model_name_or_path", here,
            "--adapter_name_or_path", f"{here}/o/adapter", "--template", "qwen2_vl",
            "--export_dir", f"{here}/o/merged.partial", "--export_device", "cpu", "--infer_dtype", dtype,
            "-m", "training_data_construction.sft_checkpoint", here, f"{here}/o/merged.partial", f"{here}/o/merged",
            "--data", here,
        ]  # fmt: skip

    def test_paths_from_arguments(self, tmp_path):
        out = f"{tmp_path}/o"
        done = self.run("run_sft_tiny.sh", "model_name_or_path=/m", "dataset_dir=/d", f"output_dir={out}")
        lines = done.stdout.splitlines()
        given = ["model_name_or_path=/m", "dataset_dir=/d", f"output_dir={out}"]
        assert lines[4:8] == [out, *given]
        assert lines[12:16] == [*given, f"output_dir={out}/adapter"]
        assert lines[-5:] == ["/m", f"{out}/merged.partial", f"{out}/merged", "--data", "/d"]

    def test_what_is_finished_is_not_done_again(self, tmp_path):
        here = str(tmp_path)
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter/train_results.json").write_text("{}")
        paths = {"MODEL_PATH": here, "SFT_DATA": here, "OUTPUT": here}
        words = [f"{here}/adapter is trained; remove it to train again", "-m", "training_data_construction.sft_run"]
        lines = self.run("run_sft_tiny.sh", **paths).stdout.splitlines()
        assert lines[2] == "start"
        assert lines[8:12] == [*words, "adapter"]
        assert "train" not in lines
        (tmp_path / "merged").mkdir()
        lines = self.run("run_sft_tiny.sh", **paths).stdout.splitlines()
        assert lines[8:] == [words[0], f"{here}/merged is there; remove it to merge again"]
        (tmp_path / "adapter/train_results.json").unlink()
        done = self.run("run_sft_tiny.sh", **paths)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{here}/merged is there, but its adapter is not" in done.stderr

    @pytest.mark.parametrize(
        ("paths", "words"),
        [
            ({}, "set MODEL_PATH to the folder of the checkpoint"),
            ({"MODEL_PATH": "/"}, "set SFT_DATA to the folder that training_data_construction.build_sft wrote"),
            ({"MODEL_PATH": "/", "SFT_DATA": "/"}, "set OUTPUT to"),
            ({"MODEL_PATH": "/", "SFT_DATA": "/nowhere", "OUTPUT": "/o"}, "SFT_DATA=/nowhere does not exist"),
            ({"MODEL_PATH": "/", "SFT_DATA": "/", "OUTPUT": "/a b"}, "white space in 'output_dir=/a b'"),
            ({"MODEL_PATH": "/", "SFT_DATA": "/", "OUTPUT": "/o", "PYTHON": "no-python"}, "error: no no-python"),
        ],
    )
    def test_what_is_missing_is_named(self, paths, words):
        done = self.run("run_sft_qwen2_5_3b.sh", **paths)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stdout == ""

    @pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
    def test_two_runs_in_one_folder(self, tmp_path):
        here = str(tmp_path)
        paths = {"MODEL_PATH": here, "SFT_DATA": here, "OUTPUT": here}
        with open(tmp_path / ".lock", "ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            done = self.run("run_sft_tiny.sh", **paths)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"error: {here}: another run is writing here" in done.stderr
            assert self.run("run_sft_tiny.sh", **paths, NODE_RANK="1").returncode == 0
        assert self.run("run_sft_tiny.sh", **paths).returncode == 0

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
    def test_shellcheck(self):
        scripts = [SCRIPTS / "sft.sh", *sorted(SCRIPTS.glob("run_sft_*.sh"))]
        done = subprocess.run(
            ["shellcheck", "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True, check=False
        )
        assert done.stdout == ""


class TestFinish:
    @pytest.fixture
    def exported(self, world, tmp_path):
        """A folder such as the export leaves: the same weights, settings rewritten."""
        folder = tmp_path / "merged.partial"
        shutil.copytree(world / "tiny_policy", folder)
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "Modelfile").write_text("FROM .")
        (folder / "model.safetensors").chmod(0o600)
        return folder

    def test_settings_are_those_of_the_base(self, world, exported, tmp_path):
        base, out = world / "tiny_policy", tmp_path / "merged"
        assert sft_checkpoint.main([str(base), str(exported), str(out)]) == 0
        assert not exported.exists()
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in base.iterdir()}
        assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644

    def test_a_base_without_processor_is_refused(self, exported, tmp_path, capsys):
        (tmp_path / "bare").mkdir()
        assert sft_checkpoint.main([str(tmp_path / "bare"), str(exported), str(tmp_path / "merged")]) == 2
        assert "it lacks a tokenizer (tokenizer.json)" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()

    def test_an_export_without_weights_and_an_output_in_the_way(self, world, exported, tmp_path):
        (tmp_path / "merged").mkdir()
        with pytest.raises(DataError, match="remove it to export again"):
            sft_checkpoint.finish(str(world / "tiny_policy"), exported, tmp_path / "merged")
        (exported / "model.safetensors").unlink()
        with pytest.raises(DataError, match=r"it lacks weights \(model\.safetensors"):
            sft_checkpoint.finish(str(world / "tiny_policy"), exported, tmp_path / "other")

    def test_an_export_that_lacks_a_part_of_the_model_is_refused(self, world, exported, tmp_path, capsys):
        weights = load_file(exported / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if "visual" not in name}
        save_file(kept, exported / "model.safetensors", {"format": "pt"})
        base, out = world / "tiny_policy", tmp_path / "merged"
        assert sft_checkpoint.main([str(base), str(exported), str(out)]) == 2
        assert re.search(r"\d+ missing \(model\.visual\.", capsys.readouterr().err)
        assert not out.exists()

    def test_it_says_how_it_wants_to_be_asked_as_its_data_do(self, world, exported, tmp_path):
        record = prompt_settings.PromptSettings(5, (84, 112), "Qwen2.5-VL", "Find $expression in $frames.", 300)
        prompt_settings.write(tmp_path, record)
        sft_checkpoint.finish(str(world / "tiny_policy"), exported, tmp_path / "merged", data=tmp_path)
        assert prompt_settings.read(tmp_path / "merged") == record


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """OUTPUT of a real run of four steps on the world, eight samples a step."""
    folder = tmp_path_factory.mktemp("sft")
    cot = cases.write_records(cases.make_records(world), folder / "cot.json")
    arguments = ["--cot", cot, "--data-root", world, "--output", folder / "data", "--workers", 1]
    assert build_sft.main([str(argument) for argument in arguments]) == 0
    run_tiny(world, folder)
    return folder / "out"


def run_tiny(world, folder, python=sys.executable):
    paths = {"MODEL_PATH": world / "tiny_policy", "SFT_DATA": folder / "data", "OUTPUT": folder / "out"}
    environment = cases.environment(folder) | {name: str(path) for name, path in paths.items()}
    done = subprocess.run(
        ["bash", SCRIPTS / "run_sft_tiny.sh", "max_steps=4", "learning_rate=0.01"],
        env=environment | {"PYTHON": str(python)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class TestRealRun:
    def test_it_learns_something(self, trained):
        log = [yaml.safe_load(line) for line in (trained / "adapter/trainer_log.jsonl").read_text().splitlines()]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert len(losses) == 4
        assert losses[-1] < losses[0]

    def test_merged_is_base_plus_lora(self, world, trained):
        """lora_alpha is twice the rank by default, so the scale is 2."""
        base, merged = (
            pretrained.load_base(folder).state_dict() for folder in (world / "tiny_policy", trained / "merged")
        )
        adapter = load_file(trained / "adapter/adapter_model.safetensors")
        halves = {name.removeprefix("base_model.model.") for name in adapter}
        adapted = {name.removesuffix(".lora_A.weight") for name in halves if name.endswith(".lora_A.weight")}
        assert len(adapted) == 2 * 7  # layers x (q, k, v, o, gate, up, down)
        assert base.keys() == merged.keys()
        for name, weight in base.items():
            layer = name.removesuffix(".weight")
            if layer in adapted:
                a, b = (adapter[f"base_model.model.{layer}.lora_{half}.weight"] for half in "AB")
                assert torch.allclose(merged[name], weight + 2 * b @ a, atol=1e-6)
                assert not torch.equal(merged[name], weight)
            else:
                assert torch.equal(merged[name], weight)

    def test_settings_are_the_base_models(self, world, trained):
        names = {path.name for path in (world / "tiny_policy").iterdir()}
        assert {path.name for path in (trained / "merged").iterdir()} == names
        assert prompt_settings.read(trained / "merged") == prompt_settings.PromptSettings(
            4, (84, 84), "Qwen2.5-VL", None, 1024
        )
        for name in names - {"model.safetensors", "config.json", prompt_settings.NAME}:
            assert (trained / "merged" / name).read_bytes() == (world / "tiny_policy" / name).read_bytes()

    def test_inference_opens_it(self, world, trained):
        policy = EnginePolicy("hf", trained / "merged", max_new_tokens=4)
        record = cases.make_records(world)[0]
        images = tuple(frames.resize(frames.load(record.sample.frame_path(t)), (84, 84)) for t in record.clip.frame_ids)
        [reply] = policy.answer([Question(record.sample, record.clip, images)], seed=0)
        assert isinstance(reply, str)

    def test_grpo_opens_it(self, world, trained):
        model = loading.load_policy(ModelConfig(model_path=str(trained / "merged")))
        processor = pretrained.load_processor(trained / "merged")
        assert model.dtype == torch.float32
        assert generation.pad_id(processor) == generation.pad_id(pretrained.load_processor(world / "tiny_policy"))
        ends = generation.end_ids(trained / "merged", processor)
        assert processor.tokenizer.convert_ids_to_tokens(list(ends)) == ["<|im_end|>", "<|endoftext|>"]

    @pytest.mark.slow
    def test_a_killed_run_goes_on_to_the_same_weights(self, world, trained, tmp_path):
        """Killed while step 4's checkpoint was being written: it is dropped, step 2's is the start."""
        shutil.copytree(trained, tmp_path / "out")
        shutil.copytree(trained.parent / "data", tmp_path / "data")
        adapter = tmp_path / "out/adapter"
        for path in (adapter / "train_results.json", adapter / "checkpoint-4/trainer_state.json"):
            path.unlink()
        shutil.rmtree(tmp_path / "out/merged")
        python = tmp_path / "python"  # to save time: it trains and does nothing else
        python.write_text(f'#!/usr/bin/env bash\n[[ $3 != train ]] || exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        assert "removing the unfinished" in run_tiny(world, tmp_path, python)
        log = (adapter / "trainer_log.jsonl").read_text()
        assert '"current_steps": 3' in log
        before, after = (
            load_file(folder / "adapter/adapter_model.safetensors") for folder in (trained, tmp_path / "out")
        )
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
