"""Prints the configuration that a run would use: ``python -m verl.config config=FILE.yaml key=value …``"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from verl.config.checks import check
from verl.config.loading import ConfigError, describe, load, to_yaml
from verl.utils import logs


def main(argv: Sequence[str]) -> int:
    """Print the resolved configuration, or what is wrong with it; with --help every key there is."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(f"{describe()}\n")
        return 0
    try:
        config = load(argv)
        check(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {logs.printable(str(error))}\n")
        return 2
    sys.stdout.write(to_yaml(config))
    return 0


if __name__ == "__main__":
    logs.configure()
    sys.exit(main(sys.argv[1:]))
