"""Computes with masks and their run-length encodings: RLE <-> mask, area and box without decoding, union, IoU.

Every RLE that comes from a file goes through `check` once; the rest trusts it (pycocotools itself neither checks the
number of pixels nor the end of the string). Some writers end a run and go on with a run of no length; pycocotools takes
such a run for a pixel in a box and for the end of the mask in a union, so `check` joins the runs around it.

`use_compiled` lets numba read the strings of many masks and count what they share; results and errors stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
from pycocotools import mask as coco

from veason.types import Box, MaskTrack, Rle, Size


def encode(mask: np.ndarray) -> Rle:
    """RLE of an (H, W) mask, nonzero = inside."""
    rle = coco.encode(np.asfortranarray(mask.astype(bool, copy=False).view(np.uint8)))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle | None, size: Size) -> np.ndarray:
    """(H, W) bool mask of an RLE, column-major; None is an empty mask.

    As pycocotools decodes it, which writes pixel by pixel; here each run is written at once, several times as fast.
    """
    if rle is None:
        return np.zeros(size, dtype=bool)
    read = None if _compiled is None else _read_compiled([rle["counts"]], rle["size"])
    counts = runs(rle["counts"]) if read is None else np.diff(read[0], prepend=0)
    inside = np.zeros(len(counts), dtype=bool)
    inside[1::2] = True
    return np.repeat(inside, counts).reshape(rle["size"], order="F")


def area(rle: Rle | None) -> int:
    """Number of pixels inside, straight from the runs."""
    return 0 if rle is None else int(coco.area(rle))


def areas(rles: Sequence[Rle | None]) -> np.ndarray:
    """Returns the `area` of each of N masks, (N,) int64, with one call of pycocotools for all."""
    found = np.zeros(len(rles), np.int64)
    there = [i for i, rle in enumerate(rles) if rle is not None]
    if there:
        found[there] = coco.area([rles[i] for i in there])
    return found


def box(rle: Rle | None) -> Box | None:
    """Tightest box around the pixels inside, straight from the runs; None if there are none."""
    if rle is None or area(rle) == 0:
        return None
    height, ends = rle["size"][0], np.cumsum(runs(rle["counts"]))
    first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run inside, column by column
    first, last = first[first <= last], last[first <= last]  # a run may have no length
    columns, rows = (first // height, last // height), (first % height, last % height)
    top, bottom = (0, height - 1) if (columns[0] < columns[1]).any() else (rows[0].min(), rows[1].max())
    return (float(columns[0].min()), float(top), float(columns[1].max()), float(bottom))  # inclusive corners


def merge(rles: Sequence[Rle | None]) -> Rle | None:
    """RLE of the union, without decoding; None if every one is None."""
    merged: Rle | None = None
    for rle in rles:
        if merged is None or rle is None:
            merged = merged or rle
            continue
        height, width = rle["size"]
        counts = None
        if len(merged["counts"]) + len(rle["counts"]) <= height * width:  # pycocotools has room for a run per pixel
            counts = coco.merge([merged, rle])["counts"].decode("ascii")
        if counts is None or runs(counts).sum() != height * width:  # it ends where two runs of no length meet
            joined = [_joined(runs(one["counts"]), one["size"]) for one in (merged, rle)]
            counts = coco.merge(joined)["counts"].decode("ascii")
        merged = Rle(size=[height, width], counts=counts)
    return merged


def _joined(counts: np.ndarray, size: Sequence[int]) -> Rle:
    """The RLE of (R,) run lengths with the runs on both sides of each run of no length joined."""
    lasting = np.flatnonzero(counts)
    inside, lengths = lasting % 2, counts[lasting]
    starts = np.flatnonzero(np.diff(inside, prepend=-1))
    joined = [0] * int(inside[0]) + np.add.reduceat(lengths, starts).tolist()
    rle = coco.frPyObjects({"size": list(size), "counts": joined}, *size)
    return Rle(size=list(size), counts=rle["counts"].decode("ascii"))


def union(rles: Sequence[Rle | None], size: Size) -> np.ndarray:
    """(H, W) bool union of some masks of one frame."""
    return decode(merge(rles), size)


def track_union(track: MaskTrack, position: int) -> np.ndarray:
    """Union over the objects of a track in frame `position`: (H, W) bool; all False where there is no object."""
    return union([rles[position] for rles in track.objects], track.size)


def track_unions(track: MaskTrack) -> Iterator[np.ndarray]:
    """The unions of a track's T frames, one at a time."""
    return (track_union(track, position) for position in range(track.length))


Tracks = Sequence[Sequence[Rle | None]]
"""N tracks x T frames."""


def shared_areas(a: Tracks, b: Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of the A tracks, of the B tracks and of the overlap of each pair, all frames together.

    (A,), (B,) and (A, B) int64, straight from the runs of checked masks. ValueError if the tracks differ in length.
    """
    if len({len(track) for track in (*a, *b)}) > 1:
        raise ValueError(f"tracks of {sorted({len(track) for track in (*a, *b)})} frames have no overlap")
    if _compiled is not None:
        first, second = _run_ends(a), _run_ends(b)
        if first is not None and second is not None:
            (ends_a, bounds_a, areas_a), (ends_b, bounds_b, areas_b) = first, second
            return areas_a, areas_b, _compiled.shared(ends_a, bounds_a, len(a), ends_b, bounds_b, len(b))
    areas_a, areas_b = (np.array([areas(track).sum() for track in tracks], np.int64) for tracks in (a, b))
    shared = np.zeros((len(a), len(b)), np.int64)
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            pairs = [pair for pair in zip(one, other, strict=True) if None not in pair]
            shared[i, j] = areas([coco.merge(list(pair), intersect=True) for pair in pairs]).sum()
    return areas_a, areas_b, shared


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks."""
    if a.shape != b.shape:
        raise ValueError(f"masks of two sizes: {a.shape} and {b.shape}")
    joint = np.count_nonzero(a | b)
    if joint == 0:
        return 1.0  # both empty
    return np.count_nonzero(a & b) / joint


def check(rle: object, size: Size, where: str) -> Rle:
    """`rle` if it is a valid compressed RLE of `size`; otherwise a ValueError that opens with `where`.

    Runs of no length between two others are taken out, which leaves the pixels as they are.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{where}: expected an RLE with size and counts, found {str(rle)[:80]!r}")
    if rle["size"] != list(size):
        raise ValueError(f"{where}: the mask is {rle['size']}, the video is {list(size)} (height, width)")
    if not isinstance(rle["counts"], str):
        raise ValueError(f"{where}: counts is {type(rle['counts']).__name__}, expected a compressed string")
    try:
        counts = runs(rle["counts"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    pixels = int(counts.sum())
    if pixels != size[0] * size[1]:
        raise ValueError(f"{where}: the runs cover {pixels} pixels, the video has {size[0] * size[1]}")
    if not counts[1:].all():
        return _joined(counts, size)
    return Rle(size=list(size), counts=rle["counts"])  # whole numbers, where the file has 720.0


def check_track(rles: Sequence[object], size: Size, where: str) -> tuple[Rle | None, ...]:
    """A mask or None for each frame, each through `check`; the ValueError opens with `where` and the frame."""
    # All at once where they are sound, which is fast; one by one only to mend or to name a mask.
    counts = [rle.get("counts") if isinstance(rle, dict) and rle.get("size") == list(size) else None for rle in rles]
    strings = [one for one in counts if isinstance(one, str)]
    if len(strings) == sum(rle is not None for rle in rles) and _cover(strings, size):
        return tuple(None if one is None else Rle(size=list(size), counts=one) for one in counts)
    return tuple(None if rle is None else check(rle, size, f"{where}, frame {t}") for t, rle in enumerate(rles))


_AT_ONCE = 1 << 22
"""Characters in the table of a track's strings, at most: 200 MB while they are read."""


def _cover(counts: Sequence[str], size: Size) -> bool:
    """True if every string can be read and covers `size`, and only a first run is without length.

    False, too, for more characters than are read at one time.
    """
    if not counts:
        return True
    if _compiled is not None:
        return _read_compiled(counts, size) is not None
    if max(map(len, counts)) * len(counts) > _AT_ONCE:
        return False
    try:
        table, amounts = _read(counts)
    except ValueError:
        return False
    whole = table.sum(axis=1) == size[0] * size[1]
    return bool((whole & (np.count_nonzero(table[:, 1:], axis=1) == amounts - 1)).all())


_compiled: ModuleType | None = None


def use_compiled(wanted: bool = True) -> bool:
    """Let numba read many masks at a time from here on in this process, if it is there; True if it does.

    Loading it takes about half a second, as long as NumPy takes for the masks of a few hundred videos of ViCaS.
    """
    global _compiled
    _compiled = None
    if wanted:
        try:
            from veason import compiled_rle
        except ImportError:  # numba is not installed, or not for this NumPy
            return False
        _compiled = compiled_rle
    return wanted


def _read_compiled(counts: Sequence[str], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(run ends, bounds of each string's, areas inside) as `veason.compiled_rle.read` finds them; None if a string is
    unsound or there are too many characters at one time."""
    assert _compiled is not None
    text = "".join(counts)
    if len(text) > _AT_ONCE or not text.isascii():
        return None
    stops = np.cumsum([len(one) for one in counts], dtype=np.int64)
    ends, bounds = np.empty(len(text), np.int64), np.empty(len(counts) + 1, np.int64)
    areas = np.empty(len(counts), np.int64)
    codes = np.frombuffer(text.encode("ascii"), np.uint8)
    sound = _compiled.read(codes, stops, size[0] * size[1], ends, bounds, areas)
    return (ends[: bounds[-1]], bounds, areas) if sound else None


def _run_ends(tracks: Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`_read_compiled` of N tracks of T masks of one size, an absent mask without a run; areas (N,) over all frames."""
    rles = [rle for track in tracks for rle in track]
    present = [rle for rle in rles if rle is not None]
    if any(rle["size"] != present[0]["size"] for rle in present):
        return None
    if not present:
        return np.zeros(0, np.int64), np.zeros(len(rles) + 1, np.int64), np.zeros(len(tracks), np.int64)
    read = _read_compiled([rle["counts"] for rle in present], present[0]["size"])
    if read is None:
        return None
    ends, bounds, areas = read
    there = np.array([rle is not None for rle in rles])
    before = np.concatenate([[0], np.cumsum(there)])  # (N * T + 1,): masks that are there, before each
    all_areas = np.zeros(len(rles), np.int64)
    all_areas[there] = areas
    return ends, bounds[before], all_areas.reshape(len(tracks), -1).sum(axis=1)


def runs(counts: str) -> np.ndarray:
    """Run lengths of a compressed COCO string: (R,) int64, starting with a (possibly empty) run outside.

    Raises ValueError on anything pycocotools could not read safely.
    """
    return _read([counts])[0][0]


def _read(counts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(run lengths, numbers of runs) of N compressed COCO strings: (N, R) and (N,) int64, shorter rows end in zeros.

    The code is a base-32 variable-length integer, six bits a character from ``0``; from the fourth run on it holds the
    difference to the run before the last.
    """
    text = "".join(counts)
    if not all(counts):
        raise ValueError("the run string is empty")
    codes = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not text.isascii() or codes.min() < 0 or codes.max() > 63:
        raise ValueError("the run string holds a character outside '0' to 'o'")
    last = (codes & 32) == 0
    stops = np.cumsum([len(one) for one in counts])
    if not last[stops - 1].all():
        raise ValueError("the run string is cut off")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 6:
        raise ValueError("a run does not fit in 30 bits")
    place = np.arange(codes.size) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)  # sign bit of the last character
    amounts = np.diff(np.searchsorted(ends, stops), prepend=0)  # runs of each string
    filled = np.arange(amounts.max()) < amounts[:, None]
    table = np.zeros(filled.shape, dtype=np.int64)
    table[filled] = values
    table[:, 3::2] = np.cumsum(table[:, 1::2], axis=1)[:, 1:]
    table[:, 2::2] = np.cumsum(table[:, 2::2], axis=1)
    table *= filled
    if table.min() < 0:
        raise ValueError("a run has negative length")
    return table, amounts
