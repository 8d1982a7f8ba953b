"""`inference.predict` with one thing changed, in a process of its own: ``changed_predict.py CHANGE OPTION …``."""

import sys

from inference import distributed, predict
from veason.command import run_command


def impatient() -> None:
    """Half a second is all that it waits for room."""
    distributed.WAIT_S = 0.5


def mortal() -> None:
    """Every tracker dies over its frames."""
    from mortal import Mortal

    distributed.TrackerWorker = Mortal


if __name__ == "__main__":
    {"impatient": impatient, "mortal": mortal}[sys.argv.pop(1)]()
    sys.exit(run_command(predict.main))
