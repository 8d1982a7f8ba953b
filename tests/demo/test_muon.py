"""Muon: orthogonal updates, matrices only."""

import pytest
import torch

from demo.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 16), (3, 16, 4)])
def test_updates_are_nearly_orthogonal(shape):
    made = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)), steps=10)
    assert made.shape == shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_step_goes_against_the_gradient_by_lr_whatever_its_size():
    for size in (1e-3, 1.0, 1e3):
        p = torch.nn.Parameter(torch.zeros(4, 4))
        p.grad = size * torch.eye(4)
        Muon([p], lr=0.1).step()
        # the update is about the identity, scaled by 0.2 * sqrt(4) = 0.4
        assert torch.allclose(p.diagonal(), torch.full((4,), -0.04), atol=0.015)
        assert (p - torch.diag(p.diagonal())).abs().max() < 1e-6


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
