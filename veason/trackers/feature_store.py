"""Stores the image features of every frame of a video: in memory up to a budget, beyond it in a temporary file.

A SAM2 predictor looks a frame up in `state["cached_features"]` before it runs its image encoder, and asks that object
for nothing but `get`. A `FeatureStore` in its place, filled for all frames, lets any number of prompts share one
encoding.

The file is read and written rather than mapped: mapped pages count as resident memory until the kernel takes them
back, which a job with a memory limit may not live to see. It has no name, so it is gone with the store, or with the
process however that ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch


class FeatureStore:
    """Frame index -> what `SAM2Base.forward_image` gave for it, bit for bit and with the same strides.

    Strides matter: a matrix product may take another kernel, and round differently, for another layout.
    """

    def __init__(
        self, *, device: torch.device, storage: torch.device, budget_bytes: int, spill_dir: Path | None = None
    ) -> None:
        """Features are handed out on `device` and kept on `storage`, up to `budget_bytes` of them.

        The rest goes to a file in `spill_dir` (None: the system's folder for temporary files, which is itself memory
        on some machines).
        """
        self._device = device
        self._storage = storage
        self._left = budget_bytes
        self._spill_dir = spill_dir
        self._file: BinaryIO | None = None
        self._frames: list[list[torch.Tensor] | _Spilled] = []
        self._positions: list[torch.Tensor] = []  # the same for every frame: kept once
        self._last: tuple[int, list[torch.Tensor]] | None = None  # every object of a frame asks for it in turn

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def spilled(self) -> int:
        """Number of frames whose features are in the file."""
        return sum(isinstance(frame, _Spilled) for frame in self._frames)

    def append(self, features: list[torch.Tensor], positions: list[torch.Tensor]) -> None:
        """Add the next frame: its feature maps and their positional encodings, (1, C, h, w) each, finest first."""
        if not self._frames:
            self._positions = positions
        size = sum(tensor.untyped_storage().nbytes() for tensor in features)
        if size <= self._left:
            self._left -= size
            self._frames.append([tensor.to(self._storage) for tensor in features])
        else:
            self._left = 0  # so that the frames in memory are the first ones, whatever the sizes
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._spill_dir)  # noqa: SIM115 - it lives as long as the store
            spilled = _Spilled(self._file.seek(0, 2), [])
            for tensor in features:
                dense = tensor.cpu().clone()  # keeps the strides, drops what the storage holds beyond the tensor
                spilled.layouts.append(_Layout(dense.dtype, tuple(dense.shape), dense.stride()))
                self._file.write(_bytes(dense.as_strided((dense.numel(),), (1,))))
            self._frames.append(spilled)

    def get(self, frame: int, default: object = None) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """A stand-in for the image, which tracking does not look at, and the backbone output of `frame`.

        `default` is what the predictor offers for a miss; there is none: a frame that was not encoded is an IndexError.
        """
        if self._last is None or self._last[0] != frame:
            kept = self._frames[frame]
            if isinstance(kept, _Spilled):
                kept = self._read(kept)
            self._last = (frame, [tensor.to(self._device) for tensor in kept])
        backbone = {"backbone_fpn": list(self._last[1]), "vision_pos_enc": list(self._positions)}
        return torch.empty(1, 0, 0, 0, device=self._device), backbone

    def _read(self, spilled: _Spilled) -> list[torch.Tensor]:
        assert self._file is not None
        self._file.seek(spilled.offset)
        tensors = []
        for layout in spilled.layouts:
            flat = torch.empty(torch.Size(layout.shape).numel(), dtype=layout.dtype)
            wanted = flat.numel() * flat.element_size()
            data = self._file.read(wanted)
            assert len(data) == wanted, f"the feature file gave {len(data)} bytes of {wanted}"
            _bytes(flat)[:] = data
            tensors.append(flat.as_strided(layout.shape, layout.stride))
        return tensors


class _Layout(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Spilled(NamedTuple):
    offset: int
    layouts: list[_Layout]


def _bytes(flat: torch.Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data  # as bytes, since NumPy has no bfloat16
