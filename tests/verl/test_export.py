"""From a checkpoint to a folder that transformers loads."""

from __future__ import annotations

import shutil

import actor_cases as cases
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from verl import export
from verl.models import loading
from verl.models.inputs import collate
from verl.workers import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    cases.write_policy(folder / "untied")
    cases.write_policy(folder / "tied", tied=True)
    with cases.group(folder):
        yield folder


@pytest.fixture(scope="module", params=["untied", "tied"])
def adapter(request, folder):
    """(base model, checkpoint, actor) of a LoRA run."""
    base = folder / request.param
    actor = cases.open_actor(base, rank=4)
    actor.update(cases.six_rollouts(base))
    saved = folder / f"lora_{request.param}" / "step_000001"
    checkpoint.save(saved, actor, {"step": 1})
    return base, saved, actor


def logits(model, base):
    batch = cases.six_rollouts(base)
    with torch.no_grad():
        return model(**collate(batch["inputs"], batch["responses"], batch["response_mask"], pad_id=0)).logits


def adapted(base, actor):
    """The base model with the actor's adapter beside it, unmerged."""
    model = loading.add_lora(loading.load_base(base), actor.config.model.lora)
    export.fill(model, {name: parameter.full_tensor() for name, parameter in actor.trained.items()})
    return model


def test_merged_is_the_adapter_model(adapter, tmp_path):
    base, saved, actor = adapter
    assert export.main([str(saved), str(tmp_path / "out")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    gap = logits(merged, base) - logits(adapted(base, actor), base)
    assert gap.abs().max() < 1e-5
    assert (logits(merged, base) - logits(loading.load_base(base), base)).abs().max() > 1e-2
    wanted = cases.weights(actor)
    assert cases.largest_gap(merged.state_dict(), wanted) < 1e-6
    assert merged.config.dtype == torch.float32


def test_tokenizer_template_and_processor_come_along(adapter, tmp_path):
    base, saved, _ = adapter
    export.export(saved, tmp_path / "out")
    ours, theirs = (AutoProcessor.from_pretrained(path) for path in (tmp_path / "out", base))
    assert ours.chat_template == theirs.chat_template
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert ours.image_processor.to_dict() == theirs.image_processor.to_dict()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir() if path.stat().st_size > 100_000)[-1] != ".bin"


def test_unmerged_is_a_peft_adapter(adapter, tmp_path):
    base, saved, actor = adapter
    assert export.main([str(saved), str(tmp_path / "out"), "--no-merge"]) == 0
    model = PeftModel.from_pretrained(loading.load_base(base), tmp_path / "out")
    assert (logits(model, base) - logits(adapted(base, actor), base)).abs().max() < 1e-6
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_fully_trained_model_with_a_frozen_tower(folder, tmp_path, kind):
    base = folder / kind
    actor = cases.open_actor(base, frozen=True)
    actor.update(cases.six_rollouts(base))
    checkpoint.save(tmp_path / "step_000001", actor, {})
    export.export(tmp_path / "step_000001", tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert cases.largest_gap(model.state_dict(), cases.weights(actor)) == 0


def test_a_base_model_that_has_moved(adapter, tmp_path):
    base, saved, _ = adapter
    shutil.copytree(base, tmp_path / "moved")
    export.export(saved, tmp_path / "out", base=tmp_path / "moved")
    assert (tmp_path / "out" / "config.json").exists()


def test_what_cannot_be_exported(adapter, tmp_path, capsys):
    _, saved, _ = adapter
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert export.main([str(saved), str(tmp_path / "full")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no complete checkpoint" in capsys.readouterr().err
