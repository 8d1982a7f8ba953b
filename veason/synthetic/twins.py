"""A synthetic world again in the form of another benchmark: the same videos, objects and truths, other files."""

from __future__ import annotations

import importlib
from pathlib import Path

from veason import atomic
from veason.datasets.base import sha256
from veason.errors import DataError
from veason.files import load_json
from veason.synthetic.writer import folder_in_place

WRITERS = {
    "mevis": ("veason.synthetic.twin_mevis", "write_mevis"),
    "reasonvos": ("veason.synthetic.twin_reasonvos", "write_reasonvos"),
    "refytvos": ("veason.synthetic.twin_refvos", "write_refytvos"),
    "refdavis": ("veason.synthetic.twin_refvos", "write_refdavis"),
    "vicas": ("veason.synthetic.twin_vicas", "write_vicas"),
}
"""Name of a benchmark -> module and function ``(world, out) -> None`` that writes a ReVOS world in its form."""

VERSION = 1
"""Of the writers: twins of two versions may differ in their bytes."""


def build_twin(name: str, world: str | Path, out: str | Path) -> Path:
    """Write the ReVOS world in the folder `world` to `out` in the form of the benchmark `name`; give `out`.

    The folder appears whole or not at all. One that already holds this very twin is left as it is; one that holds
    anything else is a DataError.
    """
    world, out = Path(world), Path(out)
    record = {"format": name, "version": VERSION, "world_sha256": sha256(world / "world.json")}
    if _stands(out, record):
        return out
    module, function = WRITERS[name]
    write = getattr(importlib.import_module(module), function)
    with folder_in_place(out) as temporary:
        write(world, temporary)
        atomic.write_json(temporary / "twin.json", record)
    return out


def _stands(out: Path, record: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    described = out / "twin.json"
    if described.is_file() and load_json(described) == record:
        return True
    raise DataError(f"{out}: holds something else than this world as {record['format']}; choose another folder")
