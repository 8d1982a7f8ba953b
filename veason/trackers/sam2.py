"""Tracks with SAM2: the official video predictor, its image features computed once and shared by every prompt.

The masks are those of the stock calls (`init_state` on a folder of JPEGs, a box per object, propagate forward, then in
reverse), bit for bit; tests/veason/trackers/test_sam2.py holds that. Less is kept in memory:

- Frames come from memory, one at a time; neither they nor their float copies are kept.
- Image features are kept for all frames in a `FeatureStore`, so `track` never runs the image encoder. Its budget
  (`feature_budget_bytes`) bounds them; the frames beyond go to a temporary file.
- A frame's entry in the memory bank is dropped as soon as no later frame can look at it, so a session holds
  O(window) frames, not O(T). The model reads a window of `num_maskmem` memories and `max_obj_ptrs_in_encoder`
  pointers.
- A mask becomes an RLE when it is produced; no T x H x W stack exists.
- Objects go through in groups of `max_objects_per_pass`. The predictor infers each object on its own, batch of one,
  so the grouping changes no bit (where the config asks for masks that do not overlap, all go through together).

So memory does not grow with T but for the run lengths and a few hundred bytes a frame; `python -m
benchmarks.bench_sam2 --memory` measures it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import importlib.util
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from veason import masks
from veason.errors import DataError
from veason.files import foreign_content, read_head
from veason.trackers.base import check_frame, check_keyframe, clip_boxes
from veason.trackers.feature_store import FeatureStore
from veason.types import Box, MaskTrack, Rle, Size

try:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from sam2 import sam2_video_predictor
    from sam2.build_sam import build_sam2_video_predictor
except ModuleNotFoundError as error:
    raise DataError(
        f"the sam2 tracker cannot import {error.name!r}: `make setup` installs the official package sam2 1.1.0"
    ) from error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FEATURE_BUDGET = 4 << 30
"""Bytes of image features of a video that stay in memory."""

# As `load_video_frames` has them; (3, 1, 1).
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@dataclass(frozen=True)
class EncodedVideo:
    """A video as SAM2 sees it: image features and sizes, no pixels."""

    size: Size
    """(height, width) of the frames, and of the masks to come."""
    features: FeatureStore = field(repr=False)

    @property
    def length(self) -> int:
        """Number of frames T."""
        return len(self.features)


class Sam2Tracker:
    """The official SAM2 video predictor behind the `Tracker` protocol."""

    name = "sam2"

    def __init__(
        self,
        *,
        config: str | Path,
        checkpoint: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        max_objects_per_pass: int = 16,
        offload_features_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        feature_budget_bytes: int = FEATURE_BUDGET,
        spill_dir: str | Path | None = None,
    ) -> None:
        """Build the predictor that `config` describes with the weights of `checkpoint`.

        config: a file, or a name in the package such as ``configs/sam2.1/sam2.1_hiera_l.yaml``.
        checkpoint: a ``.safetensors`` file, or one of torch (read with weights_only), its tensors at the top or below
            "model". DataError if it is missing or does not fit the config.
        device: None is CUDA where there is one, otherwise the CPU.
        dtype: name of the autocast type; None is bfloat16 on CUDA, float32 (no autocast) elsewhere.
        max_objects_per_pass: how many objects propagate together; bounds memory, changes no mask.
        offload_features_to_cpu, offload_state_to_cpu: keep image features, or the memory bank, off the accelerator.
        feature_budget_bytes: image features kept in memory per video; hiera-large needs 17 MB a frame in float32,
            half of that in bfloat16. What does not fit goes to a temporary file in `spill_dir`.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or ("bfloat16" if self.device.type == "cuda" else "float32")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        if max_objects_per_pass < 1:
            raise ValueError(f"max_objects_per_pass is {max_objects_per_pass}, expected at least 1")
        self.dtype = DTYPES[dtype]
        self.max_objects_per_pass = max_objects_per_pass
        self.feature_budget_bytes = feature_budget_bytes
        self.spill_dir = None if spill_dir is None else Path(spill_dir)
        cpu = torch.device("cpu")
        self._feature_device = cpu if offload_features_to_cpu else self.device
        self._state_device = cpu if offload_state_to_cpu else self.device
        self.predictor = build_predictor(config, self.device)
        found, wanted = _read_weights(Path(checkpoint)), self.predictor.state_dict()
        misfits = {
            "missing": sorted(wanted.keys() - found.keys()),
            "unexpected": sorted(found.keys() - wanted.keys()),
            "of another shape": sorted(k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape),
        }
        if any(misfits.values()):
            counts = ", ".join(f"{len(keys)} {what} (first {keys[0]!r})" for what, keys in misfits.items() if keys)
            raise DataError(f"{checkpoint} does not fit {config}: of {len(wanted)} weights, {counts}")
        self.predictor.load_state_dict(found)

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> EncodedVideo:
        """Image features of T frames, (H, W, 3) uint8 RGB arrays of one size; each is read and encoded once.

        ValueError where there is no frame, or one of another size or type.
        """
        features = FeatureStore(
            device=self.device,
            storage=self._feature_device,
            budget_bytes=self.feature_budget_bytes,
            spill_dir=self.spill_dir,
        )
        levels, side = self.predictor.num_feature_levels, self.predictor.image_size
        mean, std = _MEAN.to(self.device), _STD.to(self.device)
        size: Size | None = None
        for position, frame in enumerate(frames):
            size = check_frame(frame, position, size)
            # As the stock loader does it: resized by PIL, float64 until it is a tensor, then normalised.
            pixels = np.asarray(Image.fromarray(frame).resize((side, side))) / 255.0
            image = torch.empty(3, side, side, dtype=torch.float32)  # contiguous: the layout decides the kernel
            image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
            with self._autocast():
                output = self.predictor.forward_image(((image.to(self.device) - mean) / std).unsqueeze(0))
            features.append(output["backbone_fpn"][-levels:], output["vision_pos_enc"][-levels:])
        if size is None:
            raise ValueError("no frames to encode")
        return EncodedVideo(size=size, features=features)

    def track(
        self,
        encoded: EncodedVideo,
        *,
        keyframe: int,
        boxes: Sequence[Box],
        progress: Callable[[], object] | None = None,
    ) -> MaskTrack:
        """Masks of the objects in `boxes` (xyxy, frame pixels, on frame `keyframe`) over all encoded frames.

        See `base.Tracker` for boxes that leave the frame. Propagates forward to the end, then in reverse to the start.
        """
        check_keyframe(keyframe, encoded.length)
        present = [(k, box) for k, box in enumerate(clip_boxes(boxes, encoded.size)) if box is not None]
        empty = masks.encode(np.zeros(encoded.size, dtype=bool))
        objects: list[list[Rle]] = [[empty] * encoded.length for _ in boxes]
        # Overlap is settled between the objects of a session: then all must be in the same one.
        step = len(present) if self.predictor.non_overlap_masks else self.max_objects_per_pass
        for start in range(0, len(present), max(step, 1)):
            group = present[start : start + step]
            for position, frame_masks in self._propagate(encoded, keyframe, [box for _, box in group]):
                for (k, _), mask in zip(group, frame_masks, strict=True):
                    objects[k][position] = masks.encode(mask)
                    if progress is not None:
                        progress()
        return MaskTrack(size=encoded.size, objects=tuple(map(tuple, objects)), length=encoded.length)

    def _propagate(
        self, encoded: EncodedVideo, keyframe: int, boxes: Sequence[Box]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Every position once, with the (N, H, W) bool masks of the N boxes there."""
        state = self._new_state(encoded)
        with _no_progress_bar(), self._no_memory_of(0 if keyframe else encoded.length - 1):
            for k, box in enumerate(boxes):
                with self._autocast():
                    self.predictor.add_new_points_or_box(state, frame_idx=keyframe, obj_id=k, box=box)
            for reverse in (False, True):
                steps = self.predictor.propagate_in_video(state, start_frame_idx=keyframe, reverse=reverse)
                while True:
                    with self._autocast():  # around one step: a generator must not leave its caller inside the region
                        step = next(steps, None)
                    if step is None:
                        break
                    position, _, logits = step  # logits (N, 1, H, W)
                    self._forget(state, position, keyframe, reverse)
                    if not (reverse and position == keyframe):  # the forward pass gave it
                        yield position, (logits[:, 0] > 0.0).cpu().numpy()

    @contextlib.contextmanager
    def _no_memory_of(self, last: int) -> Iterator[None]:
        """The frame that is tracked last is not encoded for the memory bank: nothing would read it there."""
        step = self.predictor.track_step

        def track_step(*, frame_idx: int, run_mem_encoder: bool, **rest: Any) -> dict[str, Any]:
            return step(frame_idx=frame_idx, run_mem_encoder=run_mem_encoder and frame_idx != last, **rest)

        self.predictor.track_step = track_step
        try:
            yield
        finally:
            del self.predictor.track_step

    def _forget(self, state: dict[str, Any], position: int, keyframe: int, reverse: bool) -> None:
        """Drop the memory-bank entries that no frame after `position` reads.

        The next frame reads at most `window` frames back. So does the first frame of the reverse pass, whose past is
        the frames just after the keyframe.
        """
        model = self.predictor
        window = max(model.num_maskmem * model.memory_temporal_stride_for_eval, model.max_obj_ptrs_in_encoder)
        low, high = (position + window, state["num_frames"]) if reverse else (keyframe + window, position - window)
        for k, outputs in state["output_dict_per_obj"].items():
            bank = outputs["non_cond_frame_outputs"]
            for t in [t for t in bank if low < t < high]:
                del bank[t]
            state["frames_tracked_per_obj"][k].clear()  # read only where clicks correct a tracked frame

    def _new_state(self, encoded: EncodedVideo) -> dict[str, Any]:
        """The state of `init_state` without the images, with every frame's features already in the cache."""
        per_object = (
            "point_inputs_per_obj",
            "mask_inputs_per_obj",
            "output_dict_per_obj",
            "temp_output_dict_per_obj",
            "frames_tracked_per_obj",
            "obj_id_to_idx",
            "obj_idx_to_id",
            "constants",
        )
        height, width = encoded.size
        return {
            "num_frames": encoded.length,
            "video_height": height,
            "video_width": width,
            "device": self.device,
            "storage_device": self._state_device,
            "cached_features": encoded.features,
            "obj_ids": [],
            **{name: {} for name in per_object},
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def build_predictor(config: str | Path, device: torch.device) -> Any:
    """The official predictor of `config`, without weights."""
    path = Path(config)
    enter: Callable[..., contextlib.AbstractContextManager[None]]
    if path.is_file():
        enter, source, name = hydra.initialize_config_dir, str(path.resolve().parent), path.name
    elif (importlib.resources.files("sam2") / str(config)).is_file():
        enter, source, name = hydra.initialize_config_module, "sam2", str(config)
    else:
        raise DataError(
            f"sam2 config {str(config)!r} is neither a file nor a name in the package, "
            "such as configs/sam2.1/sam2.1_hiera_l.yaml"
        )
    outer = GlobalHydra.instance().hydra  # the package's own, or the host program's: put back below
    GlobalHydra.instance().clear()
    try:
        with enter(source, version_base="1.2"):
            predictor = build_sam2_video_predictor(name, device=str(device))
    finally:
        GlobalHydra.instance().hydra = outer
    if importlib.util.find_spec("sam2._C") is None:
        predictor.fill_hole_area = 0  # it would try at every frame, fail, warn and leave the holes; run.json says it
    return predictor


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name; a file that is none of weights, or would run code when read, is a DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        head = read_head(path)
        foreign = None if head.startswith(b"PK") else foreign_content(head)  # a .pt file is a zip archive
        if foreign:
            raise DataError(f"{path}: not a file of weights but {foreign}") from error
        first = str(error).partition("\n")[0].rstrip()  # torch goes on about how to read what runs code
        raise DataError(f"{path}: cannot be read as a file of weights alone: {first}; fetch it again") from error
    found = found.get("model", found) if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence the progress bar of `propagate_in_video`, which has no switch of its own."""
    bar = sam2_video_predictor.tqdm
    sam2_video_predictor.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        sam2_video_predictor.tqdm = bar
