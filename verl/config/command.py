"""``python -m verl.config config=FILE.yaml key=value …`` prints what a run would use, or what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from verl.config.checks import check
from verl.config.errors import ConfigError
from verl.config.keys import describe
from verl.config.loading import load, to_yaml


def main(argv: Sequence[str]) -> int:
    """Print the resolved configuration, or what is wrong with it; with --help every key there is."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(f"{describe()}\n")
        return 0
    try:
        config = load(argv)
        check(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(to_yaml(config))
    return 0
