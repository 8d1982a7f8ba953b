"""The facts of a family of vision-language models: the picture sizes it takes, and the coordinates of its boxes."""

from __future__ import annotations

from dataclasses import dataclass

from veason.errors import DataError
from veason.types import Size


@dataclass(frozen=True)
class Family:
    """A model family, by its name."""

    name: str
    multiple: int
    """Sides of the model size must be multiples of patch size x merge size, or the processor resizes again."""
    box_range: int | None
    """Boxes run 0 … box_range over each side whatever the picture's size; None: they are in model pixels."""

    def check_size(self, size: Size) -> Size:
        """`size` if the processor takes it as it is; otherwise a DataError with the nearest good size."""
        if all(side > 0 and side % self.multiple == 0 for side in size):
            return size
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in size)
        raise DataError(
            f"model size {size[0]}x{size[1]} is not a multiple of {self.multiple}: the processor of {self.name} would "
            f"resize again and boxes would drift; use {height}x{width}"
        )

    def answer_size(self, model_size: Size) -> Size:
        """(height, width) to which the family's boxes refer, for pictures of `model_size`; rescale from it."""
        return model_size if self.box_range is None else (self.box_range, self.box_range)


QWEN2_5_VL = Family(name="Qwen2.5-VL", multiple=28, box_range=None)
QWEN3_VL = Family(name="Qwen3-VL", multiple=32, box_range=1000)

BY_MODEL_TYPE = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}
"""Family by the ``model_type`` of a Hugging Face config."""


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face ``model_type``; DataError for one that is not known."""
    if model_type not in BY_MODEL_TYPE:
        raise DataError(f"no known family for model type {model_type!r}; known: {', '.join(BY_MODEL_TYPE)}")
    return BY_MODEL_TYPE[model_type]
