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
from verl.single_controller.errors import WorkerLost


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
    from verl.trainer.ray_trainer import RayTrainer

    for attempt in range(config.trainer.max_restarts + 1):
        trainer = RayTrainer(config)
        try:
            trainer.fit()
            return
        except WorkerLost as error:
            if attempt == config.trainer.max_restarts:
                raise
            print(f"restart {attempt + 1} of {config.trainer.max_restarts}: {error}", file=sys.stderr, flush=True)
            config = replace(config, trainer=replace(config.trainer, resume="auto"))
        finally:
            trainer.close()


if __name__ == "__main__":
    try:
        main()
    except configuration.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
