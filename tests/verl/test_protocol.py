"""Batch: the same rows, whatever is done to them."""

import pytest
import torch

from verl.protocol import Batch


def batch():
    return Batch({"x": torch.arange(6).reshape(3, 2), "y": torch.tensor([1.0, 2.0, 3.0])}, {"name": ["a", "b", "c"]})


def test_rows_stay_together():
    chosen = batch().select([2, 0])
    assert chosen["x"].tolist() == [[4, 5], [0, 1]]
    assert (chosen["y"].tolist(), chosen["name"]) == ([3.0, 1.0], ["c", "a"])


def test_rows_that_disagree_are_an_error():
    with pytest.raises(AssertionError, match="rows disagree"):
        Batch({"x": torch.zeros(2)}, {"name": ["a"]})
    assert len(Batch()) == 0
    assert "x" in batch()
    assert "z" not in batch().with_tensors(w=torch.zeros(3))
