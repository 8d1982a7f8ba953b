"""Draws the curves of a run: ``python -m verl.plot RUN [--output FILE] [--keys PATTERN …] [--smooth N]``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from verl.utils.tracking import METRICS_FILE, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_KEYS = (
    "reward/total",
    "reward/*",
    "problem/*",
    "group/*",
    "actor/kl",
    "actor/entropy",
    "actor/clip_fraction",
    "actor/loss",
    "actor/grad_norm",
    "length/response",
    "length/finished",
    "engine/gap_mean",
)
COLUMNS = 4
PROBLEM = "problem/"
"""Prefix of the shares of unusable replies by reason, which are in the file where they occur."""
HELD_OUT = "val/"
"""Prefix of a held-out value, which is drawn as dots in the panel of the value without it."""
LINE, FAINT, DOTS = "#1f5fa8", "#a9c4e4", "#d1602b"

Curve = list[tuple[int, float]]
"""(step, value) in order of steps; NaN where the run had no finite value."""


def read_curves(path: Path) -> dict[str, Curve]:
    """Every metric of a ``metrics.jsonl`` by name; a step without some problem had none of it."""
    curves: dict[str, Curve] = {}
    records = list(read_lines(path))
    problems = dict.fromkeys((name for record in records for name in record if name.startswith(PROBLEM)), 0.0)
    for record in records:
        absent = problems if "reward/total" in record else {}  # a step that only validates says nothing of rollouts
        for name, value in {**absent, **record}.items():
            if name != "step":
                curves.setdefault(name, []).append((record["step"], math.nan if value is None else value))
    return curves


def select(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that match a pattern, in the order of the patterns, then of the names; each once."""
    found = [name for pattern in patterns for name in sorted(names) if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place, or of those there are near the start; NaN is left out."""
    means = []
    for stop in range(1, len(values) + 1):
        recent = [value for value in values[max(0, stop - window) : stop] if not math.isnan(value)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


def draw(curves: dict[str, Curve], keys: Sequence[str], output: Path, *, window: int = 1, title: str = "") -> None:
    """One small panel per key, written to `output` (PNG, PDF or SVG by its ending)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.3 * rows + 0.5), squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    for panel, key in zip(axes.flat, keys, strict=False):
        draw_panel(panel, key, curves[key], held_out=curves.get(f"{HELD_OUT}{key}", []), window=window)
    for panel in axes.flat[len(keys) :]:
        panel.set_visible(False)
    for panel in axes.flat[max(0, len(keys) - columns) : len(keys)]:
        panel.set_xlabel("step", fontsize=8)
    figure.savefig(output, dpi=130)
    pyplot.close(figure)


def draw_panel(panel: Axes, key: str, curve: Curve, *, held_out: Curve, window: int) -> None:
    """One curve, smoothed over `window` steps, with the values of held-out prompts as dots."""
    from matplotlib.ticker import AutoLocator

    steps, values = zip(*curve, strict=True)
    panel.set_title(key, fontsize=9, loc="left")
    marker = "." if len(steps) < 30 else ""
    if window > 1:
        panel.plot(steps, values, color=FAINT, linewidth=0.8)
    panel.plot(steps, smooth(values, window), color=LINE, linewidth=1.5, marker=marker)
    if held_out:
        panel.plot(*zip(*held_out, strict=True), color=DOTS, marker="o", markersize=4, linestyle=":", label="held out")
        panel.legend(fontsize=7, frameon=False)
    panel.grid(color="#e6e6e6", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7)
    panel.yaxis.get_offset_text().set_fontsize(7)
    steps_axis = AutoLocator()
    steps_axis.set_params(integer=True)
    panel.xaxis.set_major_locator(steps_axis)
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0 or 1e-2 <= largest < 1e5:  # the numbers read well without a power of ten
        panel.ticklabel_format(axis="y", style="plain", useOffset=False)


def main(argv: Sequence[str] | None = None) -> int:
    def window(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a whole number of steps, at least 1, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="python -m verl.plot", description="Draw the curves of a training run from its metrics.jsonl."
    )
    parser.add_argument("run", type=Path, help="folder of the run (trainer.save_checkpoint_path), or a metrics file")
    parser.add_argument("--output", type=Path, help="picture to write: .png, .pdf or .svg (default RUN/curves.png)")
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="PATTERN",
        help="metrics to draw, such as 'reward/*' (default: the usual ones)",
    )
    parser.add_argument("--smooth", type=window, default=1, metavar="N", help="mean over the last N steps (default 1)")
    args = parser.parse_args(argv)
    path = args.run / METRICS_FILE if args.run.is_dir() else args.run
    output = args.output or path.parent / "curves.png"
    try:
        curves = read_curves(path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    keys = select(list(curves), args.keys or DEFAULT_KEYS)
    if not keys:
        wanted = " ".join(args.keys or DEFAULT_KEYS)
        sys.stderr.write(f"error: {path} has nothing named {wanted}; it has {' '.join(sorted(curves)) or 'no lines'}\n")
        return 2
    draw(curves, keys, output, window=args.smooth, title=path.resolve().parent.name)
    sys.stdout.write(f"{output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
