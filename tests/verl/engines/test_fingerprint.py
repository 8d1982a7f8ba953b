"""Fingerprints of weights: by hand, and of what fusing and sharding leave of them."""

from __future__ import annotations

import math

import pytest
import torch

from verl.engines.weights import Fingerprints, fingerprint, probe


def test_a_matrix_is_told_by_what_it_makes_of_the_probe():
    given = probe(2)
    weight = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    assert torch.allclose(fingerprint(weight), torch.stack([given[0], 2 * given[0] + 3 * given[1]]))
    assert torch.equal(fingerprint(weight[0]), weight[0])  # a vector stands for itself
    assert torch.allclose(fingerprint(weight.reshape(2, 2, 1, 1)), fingerprint(weight))
    assert torch.equal(probe(2), given)


def test_parts_of_a_fused_matrix_have_parts_of_its_fingerprint():
    top, bottom = torch.randn(3, 5), torch.randn(2, 5)
    assert torch.allclose(fingerprint(torch.cat([top, bottom])), torch.cat([fingerprint(top), fingerprint(bottom)]))
    left, right = top.split([2, 3], dim=1)
    assert torch.allclose(left @ probe(5)[:2] + right @ probe(5)[2:], fingerprint(top), atol=1e-6)


def test_what_differs_from_what_was_sent():
    sent = {"same": torch.tensor([3.0, 4.0]), "old": torch.tensor([3.0, 4.0]), "zero": torch.zeros(2)}
    held = {**sent, "old": torch.tensor([3.0, 4.5])}
    prints = Fingerprints(torch.float32)
    assert dict(prints.watch(iter(sent.items()))) == sent
    found = prints.differing([*sent, "missing"], lambda name, values: (held[name], values))
    assert found == {"old": pytest.approx(0.5 / 5), "missing": math.inf}
    list(prints.watch(iter({"same": sent["same"]}.items())))
    assert prints.differing(["old"], lambda name, values: (held[name], values)) == {"old": math.inf}


def test_a_weight_is_compared_as_the_engine_rounds_it():
    prints = Fingerprints(torch.bfloat16)
    list(prints.watch(iter([("w", torch.tensor([1.001]))])))
    assert prints.differing(["w"], lambda name, values: (torch.tensor([1.0]), values)) == {}
