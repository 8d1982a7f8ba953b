"""The base of the readers: a list of samples in the order of the file, ground truth annotation by annotation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from veason import masks
from veason.datasets.base import Tolerance
from veason.datasets.pictures import read_indices
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample


class SampleList(ABC):
    """Base of the readers, a `Dataset` once `track` is there. Picklable: paths and samples, no open file."""

    name: str
    default_split: str

    def __init__(
        self,
        samples: Iterable[VideoSample],
        *,
        split: str,
        files: dict[str, Path],
        min_frames: int = 1,
        scoring: bool = False,
    ) -> None:
        """files: as in `Dataset`, "meta" among them. min_frames: leave out shorter videos, as some trainings do.

        scoring: see `open_dataset`; `samples` is read with `tolerance` set accordingly.
        """
        if min_frames < 1:
            raise DataError(f"min_frames is {min_frames}; a video has at least 1 frame")
        self.split, self.files = split, files
        self.tolerance = Tolerance() if scoring else None
        self._samples = [sample for sample in samples if len(sample) >= min_frames]
        if not self._samples:
            longer = f" of {min_frames} frames or more" if min_frames > 1 else ""
            raise DataError(f"{files['meta']}: the data set is empty: no video{longer} has an expression")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> VideoSample:
        return self._samples[index]

    def __iter__(self) -> Iterator[VideoSample]:
        return iter(self._samples)

    @property
    def warnings(self) -> list[str]:
        """See `Dataset.warnings`; masks are looked at when they are read, so there may be more afterwards."""
        return [] if self.tolerance is None else self.tolerance.lines()

    @abstractmethod
    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        """One annotation of a sample's video: T checked RLEs, None where the object is not in the frame."""

    def read_target(self, path: Path, size: Size) -> Rle | None:
        """The mask in an annotation PNG whose pixels other than 0 are the target; None if there are none."""
        mask = read_indices(path, size, scoring=self.tolerance is not None)
        return masks.encode(mask) if mask.any() else None

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        """Ground truth of a sample, objects x T frames (see `Dataset.object_rles`)."""
        return tuple(self.track(sample, anno_id) for anno_id in sample.anno_ids)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        """Per frame the union of all annotated objects that the video's expressions refer to."""
        samples = self.by_video[video]
        owners = {anno_id: sample for sample in samples for anno_id in sample.anno_ids}
        tracks = [self.track(sample, anno_id) for anno_id, sample in owners.items()]
        return tuple(masks.merge([track[t] for track in tracks]) for t in range(len(samples[0])))

    def gt_frames(self, sample: VideoSample) -> tuple[int, ...]:
        """Every frame; see `Dataset.gt_frames`."""
        return tuple(range(len(sample)))

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        """None: `files` hold all of the ground truth. See `Dataset.truth_files`."""
        return ()

    @cached_property
    def by_video(self) -> dict[str, list[VideoSample]]:
        """The samples of each video, both in the order of the file."""
        videos: dict[str, list[VideoSample]] = {}
        for sample in self._samples:
            videos.setdefault(sample.video, []).append(sample)
        return videos
