"""One process of one check: load everything, wait for an order on stdin, carry it out, write what came of it.

Orders come late so that the next check's process starts up while this one's is at work. It ends with its stdin, which
is when whoever gives the orders has ended, however that was.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from verl.gpu_check import checks, rollouts
from verl.gpu_check.place import Place
from verl.gpu_check.plan import FAILED, OK, SKIPPED
from verl.utils import device, plugins

LOADED = (checks, rollouts)
"""What most checks need, imported before there is an order."""


def main() -> None:
    disable_progress_bar()
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=end_with_stdin, daemon=True).start()
    order = json.loads(line)
    os.environ.update(order["environment"])
    if device.device_type() == "cpu":
        torch.set_num_threads(1)  # several ranks share a few cores
    Path(order["begun"]).touch()
    result = Path(order["result"])
    found = carry_out(order)
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.rename(result)
    # what other libraries left running must not keep a finished check from ending
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Run the check; whatever it raises is what there is to report."""
    place = Place(size=order["size"], model=Path(order["model"]), scratch=Path(order["scratch"]))
    start = time.perf_counter()
    try:
        numbers, state, why, trace = plugins.find(order["run"], group="verl.gpu_checks")(place), OK, "", ""
    except Exception as error:
        numbers, state, why, trace = {}, FAILED, one_line(error), traceback.format_exc()
    if isinstance(numbers, str):
        numbers, state, why = {}, SKIPPED, numbers
    return {
        "state": state,
        "why": why,
        "seconds": time.perf_counter() - start,
        "peak_gib": device.peak_memory_gib(place.device),
        "numbers": {name: float(value) for name, value in numbers.items()},
        "edges": place.edges,
        "trace": trace,
        "device": described(place),
    }


def one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def described(place: Place) -> str:
    name = torch.cuda.get_device_name(place.device) if place.on_gpu else f"CPU ({platform.machine()})"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


if __name__ == "__main__":
    main()
