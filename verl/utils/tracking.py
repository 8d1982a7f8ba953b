"""Writes the numbers of a run to the console, JSON lines, TensorBoard, and Weights & Biases.

``metrics.jsonl`` holds what a run computes, one line a step, and nothing that differs between two equal runs; a run
that was killed and resumed ends with the same file, line for line. Seconds and bytes go to ``timings.jsonl``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TextIO

from verl.config import Config, ConfigError, flatten

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
COLUMNS = {
    "group/equal": "equal",
    "actor/loss": "loss",
    "actor/kl": "kl",
    "actor/entropy": "entropy",
    "actor/clip_fraction": "clipped",
    "actor/grad_norm": "grad",
    "length/response": "length",
    "val/reward/total": "val",
}
"""Metrics that the console shows after the reward and its terms, with their headings; all others are in the files."""
TERM = "reward/"
"""Prefix of the reward's terms, which stand under their own names, and of its total."""
WIDTH = 9
"""Characters per column."""
HEADER_EVERY = 20
"""Rows between two headers."""
ETA_OVER = 20
"""Steps from whose mean duration the remaining time is estimated."""

NEEDS = {"tensorboard": ("tensorboard", "torch.utils.tensorboard"), "wandb": ("wandb", "wandb")}
"""Package that a backend needs, and what is imported of it or for it."""
WANDB_ID = "wandb_id"
AWAY = ("offline", "disabled", "dryrun")
"""Values of WANDB_MODE with which nothing is sent."""


def check(logger: Sequence[str]) -> None:
    """ConfigError, before anything is started, for a backend whose package or key is not there."""
    for name, (package, _) in NEEDS.items():
        if name in logger and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"trainer.logger names {name}, but {package} is not installed: pip install {package}, or take it out "
                "of trainer.logger"
            )
    if "wandb" not in logger or os.environ.get("WANDB_MODE") in AWAY:
        return
    wandb = importlib.import_module("wandb")
    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ConfigError(f"trainer.logger names wandb: {_without_key(error)}") from None
    if not known:
        raise ConfigError(
            "trainer.logger names wandb, but there is no key for it: set WANDB_API_KEY or run `wandb login`, set "
            "WANDB_MODE=offline to keep its numbers in the run's folder, or take wandb out of trainer.logger"
        )


def _without_key(error: Exception) -> str:
    """An exception of W&B on one line, without the key should it be quoted."""
    line, key = " ".join(str(error).split()).rstrip("."), os.environ.get("WANDB_API_KEY", "").strip()
    return line.replace(key, "***") if key else line


class Backend(Protocol):
    """A place that numbers go to."""

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Hands each step's numbers to every backend of ``trainer.logger``."""

    def __init__(
        self, config: Config, folder: Path, *, total_steps: int, first_step: int = 0, goes_on: bool | None = None
    ) -> None:
        """`folder` is the run's. `first_step` is the number of steps already done: lines of later steps, which a
        killed run left after its last checkpoint, are cut off. `goes_on`: what the folder holds up to there is this
        run's own (by default: where any step is done); without it files begin anew, and W&B gets a new run."""
        folder.mkdir(parents=True, exist_ok=True)
        goes_on = first_step > 0 if goes_on is None else goes_on
        open_backend: dict[str, Callable[[], Backend]] = {
            "console": lambda: Console(total_steps=total_steps),
            "jsonl": lambda: JsonLines(folder, first_step=first_step if goes_on else 0),
            "tensorboard": lambda: TensorBoard(folder / "tensorboard", first_step=first_step),
            "wandb": lambda: Wandb(folder, config, goes_on=goes_on),
        }
        self._backends: list[Backend] = [open_backend[name]() for name in config.trainer.logger]

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """`step` is the number of steps done, 0 before the first; each step is written once. `metrics` must be the same
        in a repeated run, `timings` (seconds, bytes) need not."""
        numbers = {name: float(value) for name, value in metrics.items()}
        times = {name: float(value) for name, value in timings.items()}
        for backend in self._backends:
            backend.write(step, numbers, times)

    def close(self) -> None:
        for backend in self._backends:
            backend.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Console:
    """One row a step with progress and remaining time: a table on a terminal, named values elsewhere."""

    def __init__(self, *, total_steps: int, stream: TextIO | None = None) -> None:
        self._total = total_steps
        self._stream = stream or sys.stdout
        self._as_table = self._stream.isatty()
        self._ends = deque([time.monotonic()], maxlen=ETA_OVER + 1)
        self._rows = 0
        self._shown: dict[str, str] = {}

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        if step > 0:
            self._ends.append(time.monotonic())
        count = len(str(self._total))
        progress = f"{step:>{count}}/{self._total} {step / max(self._total, 1):>4.0%}"
        eta = "eta ?"  # until a step is done
        if len(self._ends) > 1:
            pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
            eta = f"eta {timedelta(seconds=round(pace * max(self._total - step, 0)))}"
        if self._as_table:
            self._write_row(progress, eta, metrics)
        else:
            values = "  ".join(f"{head} {short(metrics[name])}" for name, head in columns(metrics).items())
            self._stream.write(f"step {progress}  {values}  {eta}\n")
        self._stream.flush()

    def _write_row(self, progress: str, eta: str, metrics: Mapping[str, float]) -> None:
        shown = columns({**self._shown, **metrics})
        if shown != self._shown or self._rows % HEADER_EVERY == 0:
            self._shown = shown
            heads = "".join(f"{head[: WIDTH - 1]:>{WIDTH}}" for head in shown.values())
            self._stream.write(f"\033[1m{'step':<{len(progress)}}{heads}\033[0m\n")
        cells = "".join(f"{short(metrics[name]) if name in metrics else '':>{WIDTH}}" for name in shown)
        self._stream.write(f"{progress}{cells}  {eta}\n")
        self._rows += 1

    def close(self) -> None:
        pass


def columns(names: Collection[str]) -> dict[str, str]:
    """Those of the metrics `names` that the console shows, in order, with their headings."""
    total, usable = f"{TERM}total", f"{TERM}without_problem"
    terms = {name: name.removeprefix(TERM) for name in names if name.startswith(TERM) and name not in (total, usable)}
    ordered = {total: "reward", **terms, **COLUMNS}
    return {name: head for name, head in ordered.items() if name in names}


def short(value: float) -> str:
    """A number in at most eight characters: 0.0012, 2.134, 1.2e-07, 312.5."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


class JsonLines:
    """``metrics.jsonl`` and ``timings.jsonl``: ``{"step": 3, "actor/kl": 0.01, …}``, names in order. A value that is no
    finite number is null: JSON has no word for it."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        self._metrics = _open_after(folder / METRICS_FILE, first_step)
        self._timings = _open_after(folder / TIMINGS_FILE, first_step)

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        for handle, values in ((self._metrics, metrics), (self._timings, timings)):
            finite = {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}
            line = json.dumps({"step": step, **finite}, ensure_ascii=False, allow_nan=False)
            # one system call where the disk allows, on the disk when this returns: a cut leaves half a line at worst
            rest = memoryview(line.encode() + b"\n")
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)

    def close(self) -> None:
        os.close(self._metrics)
        os.close(self._timings)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a half-written last line is left out."""
    return [record for record, _ in _records(path)]


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole records in order, each with the number of bytes up to its end."""
    end = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return  # cut off while it was written
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}:{number}: expected a JSON object with a step, found {line[:80]!r}") from error
        end += len(line)
        yield record, end


def _open_after(path: Path, first_step: int) -> int:
    """Handle that appends to `path` after the lines of the first `first_step` steps; what follows them is removed.
    A warning says where lines that should be there are not."""
    end = last = 0
    if first_step > 0 and path.exists():
        kept = [(end, record["step"]) for record, end in _records(path) if record["step"] <= first_step]
        end, last = kept[-1] if kept else (0, 0)
    if last < first_step:
        log.warning("%s has no line of step %d, from which the run resumes", path, first_step)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.ftruncate(handle, end)
    return handle


class TensorBoard:
    """Event files for ``tensorboard --logdir``."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        writer = _optional("tensorboard").SummaryWriter
        self._writer = writer(str(folder), purge_step=first_step + 1 if first_step > 0 else 0)

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        for name, value in _all(metrics, timings).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, online or with ``WANDB_MODE=offline``; a resumed run goes on under its old id."""

    def __init__(self, folder: Path, config: Config, *, goes_on: bool) -> None:
        """`goes_on`: under the id that the folder holds. A run that begins anew gets an id of its own, whatever an
        earlier one left that died before its first checkpoint."""
        wandb = _optional("wandb")
        id_file = folder / WANDB_ID
        if not (goes_on and id_file.exists()):
            id_file.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=config.trainer.project_name,
                name=config.trainer.experiment_name,
                id=id_file.read_text().strip(),
                resume="allow",
                dir=str(folder),
                config=flatten(config),
                allow_val_change=True,  # what a resumed run was allowed to change
            )
        except getattr(wandb, "Error", ()) as error:
            raise ConfigError(
                f"trainer.logger names wandb, which could not begin a run: {_without_key(error)}. WANDB_MODE=offline "
                "keeps its numbers in the run's folder"
            ) from None

    def write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        self._run.log(_all(metrics, timings), step=step)

    def close(self) -> None:
        self._run.finish()


def _all(metrics: Mapping[str, float], timings: Mapping[str, float]) -> dict[str, float]:
    return {**metrics, **{f"time/{name}": value for name, value in timings.items()}}


def _optional(name: str) -> Any:
    package, module = NEEDS[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"trainer.logger names {name}, but {error.name} is not installed: pip install {package}, or take it out "
            "of trainer.logger"
        ) from error
