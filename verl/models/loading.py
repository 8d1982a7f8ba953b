"""Loads the policy to train: a pretrained model, with an adapter beside its layers where one is configured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from verl.config import LoraConfig, ModelConfig
from verl.engines.inputs import PromptInputs
from verl.engines.pretrained import load_base

ADAPTER = "default"
"""Name of the one LoRA adapter."""


def load_policy(config: ModelConfig, *, empty: bool = False) -> PreTrainedModel | PeftModel:
    """The model to train, in float32 on the CPU: adapter added, frozen and checkpointed as configured."""
    model = load_base(config.model_path, empty=empty)
    policy = add_lora(model, config.lora) if config.lora.rank > 0 else model
    if config.freeze_vision_tower:
        vision_tower(policy).requires_grad_(False)
    if config.enable_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Freeze the model and put an adapter beside its linear layers; a new adapter changes nothing yet.

    Its random half is the same in every process, whatever was drawn before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = get_peft_model(model, peft_config(model, config), adapter_name=ADAPTER)
    assert isinstance(policy, PeftModel)  # and not one of mixed adapters
    return policy


def peft_config(model: nn.Module, config: LoraConfig) -> PeftLoraConfig:
    """PEFT's settings for an adapter. ``all-linear`` means the linear layers of the language model, but neither the
    vision tower's nor the output head."""
    if config.target_modules == "all-linear":
        names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        leaves = sorted({name.rsplit(".", 1)[1] for name in names if ".language_model." in name})
        targets: str | list[str] = rf".*\.language_model\..*\.({'|'.join(map(re.escape, leaves))})"
    else:
        targets = [name.strip() for name in config.target_modules.split(",")]
    return PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )


def plain_weights(policy: nn.Module) -> Iterator[tuple[str, list[Tensor], float]]:
    """The weights under the names of the plain model's ``state_dict``, tied ones under each of their names.

    Yields (name, tensors, scale): one tensor W, or W, A, B of an adapted layer, which stands for W + scale · (B @ A).
    """
    adapted = {f"{name}.base_layer": module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        owner, leaf = name.rsplit(".", 1)
        clean = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if leaf == "weight" and owner in adapted:
            layer = adapted[owner]
            pair = [pairs[ADAPTER].get_parameter("weight") for pairs in (layer.lora_A, layer.lora_B)]
            yield clean, [parameter, *pair], layer.scaling[ADAPTER]
        else:
            yield clean, [parameter], 0.0


def fold(tensors: list[Tensor], scale: float) -> Tensor:
    """W + scale · (B @ A) in float32, W left as it was; a single tensor as it is."""
    if len(tensors) == 1:
        return tensors[0]
    weight, a, b = tensors
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


def filler_prompt(config: Any, *, pictured: bool) -> PromptInputs:
    """The shortest possible prompt, one token or one smallest image, for passes that only keep ranks in step."""
    start = torch.tensor([config.vision_start_token_id])
    if not pictured:
        return PromptInputs(start, torch.zeros_like(start), None, None, start)
    ids = torch.tensor([config.vision_start_token_id, config.image_token_id, config.vision_end_token_id])
    vision = config.vision_config
    patches = vision.spatial_merge_size**2
    features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return PromptInputs(
        input_ids=ids,
        mm_token_type_ids=torch.tensor([0, 1, 0]),
        pixel_values=torch.zeros(patches, features),
        image_grid_thw=torch.tensor([[1, vision.spatial_merge_size, vision.spatial_merge_size]]),
        bare_ids=ids,
    )


def plain(policy: nn.Module) -> PreTrainedModel:
    """The Hugging Face model, with adapter layers in it or without."""
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    assert isinstance(model, PreTrainedModel)
    return model


def vision_tower(policy: nn.Module) -> nn.Module:
    return plain(policy).get_submodule("model.visual")


def layer_classes(policy: nn.Module) -> set[str]:
    """Class names of the repeated layers of text and vision, which are the units of sharding."""
    return set(plain(policy)._no_split_modules or ())
