"""Train a policy with GRPO: ``python -m verl.trainer.main config=FILE.yaml key=value …``

Every key of the configuration can be given on the command line; `python -m verl.trainer.main --help` lists them. The
resolved configuration is printed and written to ``config.yaml`` in ``trainer.save_checkpoint_path``. A run that was
stopped goes on from its last checkpoint when the same command is given again (``trainer.resume=auto``).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from verl import config as configuration
from verl.config import Config
from verl.single_controller.errors import NoRoom, WorkerLost


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{configuration.describe()}")
        return
    config = configuration.load(argv)
    configuration.check(config)
    text = configuration.to_yaml(config)
    folder = Path(config.trainer.save_checkpoint_path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    print(text, flush=True)
    run(config)


def run(config: Config) -> None:
    """Train, from the last checkpoint again after a worker or node was lost, at most ``trainer.max_restarts`` times."""
    lost: WorkerLost | None = None
    _check_folder(config)
    _check_engine(config)
    _check_reward(config)
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


def _check_folder(config: Config) -> None:
    """ConfigError where the run's folder holds checkpoints that are not its past: they would be taken for its own."""
    from verl.workers import checkpoint

    resume, folder = config.trainer.resume, Path(config.trainer.save_checkpoint_path)
    found = [] if resume == "auto" else checkpoint.complete(folder.resolve())
    start = Path(resume).resolve()
    others = found[found.index(start) + 1 :] if start in found else found
    if others:
        raise configuration.ConfigError(
            f"trainer.resume={resume}: {folder} holds {others[-1].name}, which is no past of this run; move it, or "
            "give another trainer.save_checkpoint_path"
        )


def _check_engine(config: Config) -> None:
    """ConfigError before anything is started, not from within a worker."""
    from verl.workers.rollout import check_installed

    check_installed(config.worker.rollout)


def _check_reward(config: Config) -> None:
    """ConfigError for a reward that no worker could build."""
    from verl.workers.reward.base import check_reward

    check_reward(config.worker.reward)


def _from_last_checkpoint(config: Config) -> Config:
    """Going on from what the run has saved, or, if nothing, from where it began."""
    from verl.workers import checkpoint

    resume = "auto" if checkpoint.latest(config.trainer.save_checkpoint_path) else config.trainer.resume
    return replace(config, trainer=replace(config.trainer, resume=resume))


if __name__ == "__main__":
    try:
        main()
    except (configuration.ConfigError, NoRoom) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
