"""The command ``python -m inference.compare``, which lays runs side by side: see `inference.report.compare`."""

import sys

from inference.report.compare import main
from veason.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
