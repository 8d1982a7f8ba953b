"""Train a policy with GRPO: ``python -m verl.trainer.main config=FILE.yaml key=value …``

Every key of the configuration can be given on the command line; `python -m verl.trainer.main --help` lists them. The
resolved configuration is printed and, once the run is up, written to ``config.yaml`` in
``trainer.save_checkpoint_path``; an earlier one that differs stays beside it as ``config_000.yaml``. A run that was
stopped goes on from its last checkpoint when the same command is given again (``trainer.resume=auto``); with another
configuration only where the keys that differ may change, see ``trainer.accept_changes``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from verl import config as configuration
from verl.config import Config
from verl.ray.errors import NoRoom, WorkerError, WorkerLost
from verl.trainer import RunStopped


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{configuration.describe()}")
        return
    config = configuration.load(argv)
    configuration.check(config)
    _check_parts(config)
    print(configuration.to_yaml(config), flush=True)
    run(config)


def _check_parts(config: Config) -> None:
    """ConfigError for a part that is missing or cannot work with its settings: before anything is started or written.
    What the data sets have to say comes with their opening, which is before anything is started, too."""
    from verl.engines import GROUP as ENGINES
    from verl.engines import check_installed, pretrained
    from verl.engines.generation import samplings
    from verl.utils import plugins, tracking
    from verl.workers.reward.base import check_reward

    tracking.check(config.trainer.logger)
    check_installed(config.worker.rollout)
    try:
        if config.worker.rollout.name not in ("hf", "vllm"):
            plugins.find(config.worker.rollout.name, group=ENGINES)
    except ValueError as error:
        raise configuration.ConfigError(f"worker.rollout.name: {error}") from error
    check_reward(config.worker.reward)
    pretrained.check(config.worker.actor.model.model_path)
    samplings(config)  # raises where the checkpoint recommends what the engines cannot do


def run(config: Config) -> None:
    """Train, from the last checkpoint again after a worker or node was lost, at most ``trainer.max_restarts`` times.

    ConfigError where another run writes into the folder, or the checkpoints there are no past of this run.
    """
    from verl.trainer import run_folder
    from verl.workers import checkpoint

    with run_folder.locked(Path(config.trainer.save_checkpoint_path)):
        checkpoint.tidy(config.trainer.save_checkpoint_path)  # first: it may give a checkpoint back its name
        past = run_folder.read_past(config, run_folder.find_past(config))
        for line in run_folder.check_config(config, past) if past else []:
            print(f"resumed with a change: {line}", flush=True)
        _run(config)


def _run(config: Config) -> None:
    lost: WorkerLost | None = None
    for attempt in range(config.trainer.max_restarts + 1):
        try:
            _train(config, apart=lost is None)
            return
        except WorkerLost as error:
            if attempt == config.trainer.max_restarts:
                raise
            print(f"restart {attempt + 1} of {config.trainer.max_restarts}: {error}", file=sys.stderr, flush=True)
            lost, config = error, _from_last_checkpoint(config)
        except NoRoom as error:
            if lost is None:
                raise
            raise NoRoom(f"{error}\nIt was wanted because {lost}") from error


def _train(config: Config, *, apart: bool) -> None:
    """One attempt."""
    from verl.trainer.ray_trainer import RayTrainer

    trainer = RayTrainer(config, apart=apart)
    try:
        trainer.fit()
    finally:
        trainer.close()


def _from_last_checkpoint(config: Config) -> Config:
    """Going on from what the run has saved, or, if nothing, from where it began."""
    from verl.workers import checkpoint

    resume = "auto" if checkpoint.latest(config.trainer.save_checkpoint_path) else config.trainer.resume
    return replace(config, trainer=replace(config.trainer, resume=resume))


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""Errors of the file system that a user can put right."""
UNSAVED = "verl.workers.checkpoint.CheckpointError: "


def command() -> int:
    """`main` as a command: what a user can put right is one line on stderr, and 2 its exit status.

    SIGTERM and Ctrl-C end the workers, too; the same command then goes on from the last checkpoint.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    on = "the same command goes on from the last checkpoint"
    try:
        main()
    except (configuration.ConfigError, NoRoom, RunStopped) as error:
        return _told(str(error))
    except WorkerLost as error:
        return _told(f"{error}\ntrainer.max_restarts is used up; {on}")
    except WorkerError as error:
        last = error.text.rstrip().splitlines()[-1]
        if not last.startswith(UNSAVED):
            raise
        return _told(last.removeprefix(UNSAVED))
    except OSError as error:
        if error.errno not in DISK:
            raise
        return _told(f"{error.filename or 'the disk'}: {error.strerror}; {on}")
    except KeyboardInterrupt:
        _end(f"stopped; {on}", signal.SIGINT)
    except SystemExit:  # the handler above
        _end(f"stopped by SIGTERM; {on}", signal.SIGTERM)
    return 0


def _told(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _end(message: str, number: signal.Signals) -> NoReturn:
    """End the workers and this process. At once, since what is left in mid-call may abort in its own destructors."""
    import ray

    print(message, file=sys.stderr)
    ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(command())
