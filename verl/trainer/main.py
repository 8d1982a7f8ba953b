"""Train a policy with GRPO: ``python -m verl.trainer.main config=FILE.yaml key=value …``

Every key of the configuration can be given on the command line; `python -m verl.trainer.main --help` lists them. The
resolved configuration is printed and, once the run is up, written to ``config.yaml`` in
``trainer.save_checkpoint_path``; an earlier one that differs stays beside it as ``config_000.yaml``. A run that was
stopped goes on from its last checkpoint when the same command is given again (``trainer.resume=auto``); with another
configuration only where the keys that differ may change, see ``trainer.accept_changes``.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from verl import config as configuration
from verl.config import Config, ConfigError
from verl.ray import NoRoom, WorkerError, WorkerLost
from verl.trainer import RunStopped
from verl.utils import logs, plugins, tracking

log = logging.getLogger("verl.trainer.main")  # also where it is run as __main__


def main(argv: Sequence[str] | None = None) -> None:
    """Check the configuration and its parts, print it, and train. ConfigError for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    logs.configure()
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{configuration.describe()}")
        return
    config = configuration.load(argv)
    configuration.check(config)
    check_parts(config)
    print(configuration.to_yaml(config), flush=True)
    run(config)


def check_parts(config: Config) -> None:
    """ConfigError for a part that is missing or cannot work with its settings, before anything is started or written.
    Data sets are checked when they are opened, which is before anything is started, too."""
    from verl.engines import GROUP as ENGINES
    from verl.engines import check_installed, pretrained
    from verl.engines.generation import samplings
    from verl.workers.reward import check_reward

    tracking.check(config.trainer.logger)
    engine = config.worker.rollout.name
    check_installed(config.worker.rollout)
    try:
        if engine not in ("hf", "vllm"):
            plugins.find(engine, group=ENGINES)
    except ValueError as error:
        raise ConfigError(f"worker.rollout.name: {error}") from error
    check_reward(config.worker.reward)
    pretrained.check(config.worker.actor.model.model_path)
    samplings(config)  # raises where the checkpoint recommends what the engines cannot do


def run(config: Config) -> None:
    """Train, from the last checkpoint again after a worker or node was lost, at most ``trainer.max_restarts`` times.

    ConfigError where another run writes into the folder, or the checkpoints there are no past of this run.
    """
    from verl.trainer import run_folder
    from verl.trainer.ray_trainer import RayTrainer
    from verl.workers import checkpoint

    folder = Path(config.trainer.save_checkpoint_path)
    with run_folder.locked(folder):
        checkpoint.tidy(folder)  # first: it may give a checkpoint back its name
        past = run_folder.read_past(config, run_folder.find_past(config))
        for line in run_folder.check_config(config, past) if past else []:
            log.info("resumed with a change: %s", line)
        lost: WorkerLost | None = None
        for attempt in range(config.trainer.max_restarts + 1):
            try:
                trainer = RayTrainer(config, apart=lost is None)
                try:
                    trainer.fit()
                finally:
                    trainer.close()
                return
            except WorkerLost as error:
                if attempt == config.trainer.max_restarts:
                    raise
                log.warning("restart %d of %d: %s", attempt + 1, config.trainer.max_restarts, error)
                lost = error
                if checkpoint.latest(folder):  # go on from there, not from where the run began
                    config = replace(config, trainer=replace(config.trainer, resume="auto"))
            except NoRoom as error:
                if lost is None:
                    raise
                raise NoRoom(f"{error}\nIt was needed because {lost}") from error


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""Errors of the file system that a user can put right."""
UNSAVED = "verl.workers.checkpoint.CheckpointError: "
"""Start of the last line of a rank's traceback where a checkpoint could not be saved."""


def command() -> int:
    """`main` as a command: what a user can put right is one line on stderr, and 2 its exit status.

    SIGTERM and Ctrl-C end the workers, too; the same command then goes on from the last checkpoint.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    again = "the same command goes on from the last checkpoint"
    try:
        main()
        return 0
    except (ConfigError, NoRoom, RunStopped) as error:
        message = str(error)
    except WorkerLost as error:
        message = f"{error}\ntrainer.max_restarts is used up; {again}"
    except WorkerError as error:
        last = error.text.rstrip().splitlines()[-1]
        if not last.startswith(UNSAVED):
            raise
        message = last.removeprefix(UNSAVED)
    except OSError as error:
        if error.errno not in DISK:
            raise
        message = f"{error.filename or 'the disk'}: {error.strerror}; {again}"
    except KeyboardInterrupt:
        _end(f"stopped; {again}", signal.SIGINT)
    except SystemExit:  # the handler above
        _end(f"stopped by SIGTERM; {again}", signal.SIGTERM)
    sys.stderr.write(f"error: {logs.printable(message)}\n")
    return 2


def _end(message: str, number: signal.Signals) -> NoReturn:
    """End the workers and this process. At once, since what is left in mid-call may abort in its own destructors."""
    import ray

    sys.stderr.write(f"{message}\n")
    ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(command())
