"""The recipe in miniature, stage by stage: the commands that lead from a synthetic world to scores.

Every stage runs real commands and prints each before it runs, so that it can be repeated alone or on real data. A
finished stage leaves a record in ``stages/`` and is skipped by the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from veason import atomic

HERE = Path(__file__).parent
BASE_POLICY = HERE / "base_policy"
TRAINING_SCRIPTS = HERE.parent / "training_scripts"
SIDE = 84
"""Side of the policy's frames, in pixels."""
FRAMES = 6
"""Number of frames that the policy is shown."""


class StageError(Exception):
    """A stage failed, or the output folder belongs to a run with other settings."""


@dataclass(frozen=True)
class Recipe:
    """The stages of one run, its output folder and its settings. `run` is the whole recipe in order."""

    out: Path
    seed: int = 0
    """Seed of the world, the sampling, the teacher, SFT and GRPO."""
    videos: int = 160
    """Number of videos; a quarter of them is for validation."""
    records: int = 48
    """Number of chains of thought for SFT."""
    steps: int = 80
    """Number of GRPO steps."""

    def run(self) -> Path:
        """Runs every stage and returns the folder of the page that compares the three models."""
        self.make_world()
        self.sample()
        self.generate_cot()
        sft = self.fine_tune()
        grpo = self.train_grpo("grpo", sft)
        models = {"base": BASE_POLICY, "SFT": sft, "GRPO": grpo}
        runs = {name: self.predict(name.lower(), model) for name, model in models.items()}
        return self.compare(runs, self.out / "grpo" / "curves.png")

    @property
    def world(self) -> Path:
        return self.out / "world"

    # ---------------------------------------------------------------------------------------------- training data

    def make_world(self) -> None:
        with self._stage("world", "A world of moving shapes, as a ReVOS data set") as todo:
            if todo:
                self.run_module(
                    "demo.world", "--out", self.world, "--videos", self.videos, "--seed", self.seed, "--no-policy"
                )

    def sample(self) -> None:
        with self._stage("sampling", "A stratified sample of the training expressions") as todo:
            if todo:
                self.run_module(
                    "training_data_construction.data_sampling",
                    "--input_json", self.world / "meta_expressions_train_.json",
                    "--output_json", self.selected, "--target_size", self.records, "--seed", self.seed,
                )  # fmt: skip

    @property
    def selected(self) -> Path:
        return self.world / "meta_expressions_train_select.json"

    def generate_cot(self) -> None:
        with self._stage("seed_cot", "Chains of thought, asked of a teacher over HTTP") as todo:
            if todo:
                with self.serve_teacher() as url:
                    self.run_module(
                        "training_data_construction.seed_cot_generation",
                        "--meta_json", self.selected, "--mask_dict", self.world / "mask_dict.json",
                        "--data_path", self.world / "JPEGImages", "--output_json", self.out / "seed_cot.json",
                        "--base-url", url, "--model", "synthetic-teacher", "--frames", FRAMES, "--model-size", SIDE,
                        "--box-decimals", 0, "--max_samples_per_video", 20, "--seed", self.seed,
                    )  # fmt: skip

    @contextmanager
    def serve_teacher(self) -> Iterator[str]:
        """Runs a teacher that knows the world within the block; gives its address."""
        port_file = self.out / "teacher.port"
        port_file.unlink(missing_ok=True)
        words = ["-m", "demo.teacher", "--world", str(self.world), "--port", "0", "--seed", str(self.seed)]
        print(f"$ python {shlex.join([*words, '--port-file', str(port_file)])} &", flush=True)
        process = subprocess.Popen([sys.executable, *words, "--port-file", str(port_file)], stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    raise StageError(f"the teacher ended with exit code {process.returncode}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
        finally:
            process.terminate()
            process.wait()

    # ---------------------------------------------------------------------------------------------- training

    def fine_tune(self, name: str = "sft", *, thinking: bool = True) -> Path:
        """Fine-tunes a LoRA with LLaMA-Factory and merges it; returns the folder of the model."""
        with self._stage(name, "Supervised fine-tuning: LLaMA-Factory, LoRA, merged into a full checkpoint") as todo:
            if todo:
                data = self.out / f"{name}_data"
                self.run_module(
                    "training_data_construction.build_sft", "--cot", self.out / "seed_cot.json",
                    "--data-root", self.world, "--meta", self.selected, "--output", data,
                    *([] if thinking else ["--no-thinking"]),
                )  # fmt: skip
                paths = {"MODEL_PATH": BASE_POLICY, "SFT_DATA": data, "OUTPUT": self.out / name}
                self.run_script(TRAINING_SCRIPTS / "run_sft_tiny.sh", paths, f"seed={self.seed}")
        return self.out / name / "merged"

    def train_grpo(self, name: str, model: Path, *settings: str) -> Path:
        """Trains a model with GRPO, plots the curves, exports a checkpoint; returns the folder of that checkpoint."""
        run = self.out / name
        with self._stage(name, "GRPO: Ray, FSDP2 on two CPU ranks, the four-term reward with GrabCut") as todo:
            if todo:
                self.run_module(
                    "verl.trainer.main", f"config={TRAINING_SCRIPTS / 'grpo_tiny.yaml'}",
                    f"data.train_files={self.world}", f"data.seed={self.seed}",
                    f"worker.actor.model.model_path={model}",
                    f"trainer.max_steps={self.steps}", f"trainer.save_checkpoint_path={run}", *settings,
                )  # fmt: skip
                self.run_module("verl.plot", run)
                self.run_module("verl.export", run / f"step_{self.steps:06d}", run / "exported")
        return run / "exported"

    # ---------------------------------------------------------------------------------------------- inference

    def predict(self, name: str, model: Path) -> Path:
        """Predicts masks for the valid split and scores them as ReVOS does; returns the run folder."""
        run = self.out / f"predictions_{name}"
        with self._stage(
            f"predict_{name}", f"Masks for the valid split from the model {name!r}, and their scores"
        ) as todo:
            if todo:
                self.run_module(
                    "inference.predict", "--dataset", "revos", "--data-root", self.world, "--split", "valid",
                    "--policy", "hf", "--model", model, "--model-size", SIDE, "--frames", FRAMES,
                    "--max-new-tokens", 120, "--batch-size", 32, "--tracker", "grabcut", "--output", run,
                )  # fmt: skip
                self.run_module("eval.revos", "--gt", self.world, "--pred", run, "--out", run / "scores")
        return run

    def compare(self, runs: Mapping[str, Path], *curves: Path, name: str = "comparison") -> Path:
        """Compares runs, given by name, in a table and on a page; returns the folder of the page."""
        page = self.out / name
        print(f"\n== {', '.join(runs)}: one table, one page", flush=True)
        pictures = ["--curves", *curves] if curves else []
        self.run_module(
            "inference.compare", *runs.values(), "--gt", self.world, "--names", *runs, "--out", page, *pictures
        )
        return page

    # ---------------------------------------------------------------------------------------------- running commands

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[bool]:
        """Gives True if the stage is still to be done, and then records that it is done at the end of the block."""
        record = self.out / "stages" / f"{name}.json"
        settings = {"seed": self.seed, "videos": self.videos, "records": self.records, "steps": self.steps}
        if record.exists():
            found = json.loads(record.read_text())
            if found["settings"] != settings:
                raise StageError(f"{record}: done with {found['settings']}, now {settings}; choose another --output")
            print(f"\n== {title}: done, in {found['seconds']:.0f} s", flush=True)
            yield False
            return
        print(f"\n== {title}", flush=True)
        start = time.perf_counter()
        yield True
        seconds = time.perf_counter() - start
        atomic.write_json(record, {"settings": settings, "seconds": seconds})
        print(f"-- {seconds:.0f} s", flush=True)

    def run_module(self, module: str, *arguments: object) -> None:
        """Prints `python -m module arguments` and runs it."""
        words = ["-m", module, *map(str, arguments)]
        print(f"$ python {shlex.join(words)}", flush=True)
        _finish(subprocess.Popen([sys.executable, *words]), module)

    def run_script(self, script: Path, environment: dict[str, Path], *arguments: str) -> None:
        """Prints the call of a shell script with these variables set, and runs it."""
        given = {name: str(value) for name, value in environment.items()}
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
        print(f"$ {shown} bash {shlex.join([str(script), *arguments])}", flush=True)
        given["PYTHON"] = sys.executable
        _finish(subprocess.Popen(["bash", str(script), *arguments], env={**os.environ, **given}), script.name)


def _finish(process: subprocess.Popen[bytes], name: str) -> None:
    """Waits for a command; where this process is interrupted or terminated, the command is ended in order, too."""
    try:
        code = process.wait()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # on a terminal the command has got the interrupt itself
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        process.terminate()
        process.wait()
        raise
    if code:
        raise StageError(f"{name} failed with exit code {code}; its messages are above")


def parse_recipe(argv: Sequence[str] | None, *, prog: str, description: str | None, output: str) -> Recipe:
    """Reads the settings of a recipe from a command line; `output` is the default folder."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=formatter)
    parser.add_argument("--output", type=Path, default=Path(output), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument(
        "--videos", type=int, default=Recipe.videos, help="number of videos in the world (default: %(default)s)"
    )
    parser.add_argument(
        "--records", type=int, default=Recipe.records, help="number of chains of thought for SFT (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="number of GRPO steps (default: %(default)s)")
    args = parser.parse_args(argv)
    return Recipe(args.output, seed=args.seed, videos=args.videos, records=args.records, steps=args.steps)
