"""The stages of the road in miniature: the commands that lead from a synthetic world to scores.

Every stage runs real commands and prints each before it runs, so that it can be repeated alone or on real data. A
finished stage leaves a note in ``stages/`` and is skipped by the next run.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from veason import atomic

HERE = Path(__file__).parent
BASE_POLICY = HERE / "base_policy"
TRAINING_SCRIPTS = HERE.parent / "training_scripts"
SIDE = 84
"""Of the policy's frames, in pixels."""
FRAMES = 6
"""Shown to the policy."""


class StageError(Exception):
    """A stage failed, or what stands in the folder is not what it would make."""


@dataclass(frozen=True)
class Road:
    """The output folder of one run of the road, and its settings."""

    out: Path
    seed: int = 0
    """Of world, sampling, teacher, SFT and GRPO."""
    videos: int = 160
    """A quarter of them for validation."""
    records: int = 48
    """Chains of thought for SFT."""
    steps: int = 80
    """Of GRPO."""

    @property
    def world(self) -> Path:
        return self.out / "world"

    # ---------------------------------------------------------------------------------------------- training data

    def make_world(self) -> None:
        with self._stage("world", "A world of moving shapes, as a ReVOS data set") as todo:
            if todo:
                self.run("demo.world", "--out", self.world, "--videos", self.videos, "--seed", self.seed, "--no-policy")

    def sample(self) -> None:
        with self._stage("sampling", "A stratified sample of the training expressions") as todo:
            if todo:
                self.run(
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
                with self._teacher() as url:
                    self.run(
                        "training_data_construction.seed_cot_generation",
                        "--meta_json", self.selected, "--mask_dict", self.world / "mask_dict.json",
                        "--data_path", self.world / "JPEGImages", "--output_json", self.out / "seed_cot.json",
                        "--base-url", url, "--model", "synthetic-teacher", "--frames", FRAMES, "--model-size", SIDE,
                        "--box-decimals", 0, "--max_samples_per_video", 20, "--seed", self.seed,
                    )  # fmt: skip

    @contextmanager
    def _teacher(self) -> Iterator[str]:
        """The address of a teacher that knows the world; it stops at the end."""
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
        """LoRA SFT by LLaMA-Factory, merged; the folder of the model."""
        with self._stage(name, "Supervised fine-tuning: LLaMA-Factory, LoRA, merged into a full checkpoint") as todo:
            if todo:
                data = self.out / f"{name}_data"
                self.run(
                    "training_data_construction.build_sft", "--cot", self.out / "seed_cot.json",
                    "--data-root", self.world, "--meta", self.selected, "--output", data,
                    *([] if thinking else ["--no-thinking"]),
                )  # fmt: skip
                where = {"MODEL_PATH": BASE_POLICY, "SFT_DATA": data, "OUTPUT": self.out / name}
                self.shell(TRAINING_SCRIPTS / "run_sft_tiny.sh", where, f"seed={self.seed}")
        return self.out / name / "merged"

    def train_grpo(self, name: str, model: Path, *settings: str) -> Path:
        """GRPO from a model, its curves, and the trained model as a checkpoint; the folder of that."""
        run = self.out / name
        with self._stage(name, "GRPO: Ray, FSDP2 on two CPU ranks, the four-term reward with GrabCut") as todo:
            if todo:
                self.run(
                    "verl.trainer.main", f"config={TRAINING_SCRIPTS / 'grpo_tiny.yaml'}",
                    f"data.train_files={self.world}", f"data.seed={self.seed}",
                    f"worker.actor.model.model_path={model}",
                    f"trainer.max_steps={self.steps}", f"trainer.save_checkpoint_path={run}", *settings,
                )  # fmt: skip
                self.run("verl.plot", run)
                self.run("verl.export", run / f"step_{self.steps:06d}", run / "exported")
        return run / "exported"

    # ---------------------------------------------------------------------------------------------- inference

    def predict(self, name: str, model: Path) -> Path:
        """Masks for the valid split and their ReVOS scores; the run folder."""
        run = self.out / f"predictions_{name}"
        with self._stage(
            f"predict_{name}", f"Masks for the valid split from the model {name!r}, and their scores"
        ) as todo:
            if todo:
                self.run(
                    "inference.predict", "--dataset", "revos", "--data-root", self.world, "--split", "valid",
                    "--policy", "hf", "--model", model, "--model-size", SIDE, "--frames", FRAMES,
                    "--max-new-tokens", 120, "--batch-size", 32, "--tracker", "grabcut", "--output", run,
                )  # fmt: skip
                self.run("eval.revos", "--gt", self.world, "--pred", run, "--out", run / "scores")
        return run

    def compare(self, runs: Mapping[str, Path], *curves: Path, name: str = "comparison") -> Path:
        """The runs side by side, by name; the folder of the page."""
        page = self.out / name
        print(f"\n== {', '.join(runs)}: one table, one page", flush=True)
        pictures = ["--curves", *curves] if curves else []
        self.run("inference.compare", *runs.values(), "--gt", self.world, "--names", *runs, "--out", page, *pictures)
        return page

    # ---------------------------------------------------------------------------------------------- how

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[bool]:
        """Whether the stage is still to be done; a note is left when it is."""
        note = self.out / "stages" / f"{name}.json"
        settings = {"seed": self.seed, "videos": self.videos, "records": self.records, "steps": self.steps}
        if note.exists():
            found = json.loads(note.read_text())
            if found["settings"] != settings:
                raise StageError(f"{note}: done with {found['settings']}, now {settings}; choose another --output")
            print(f"\n== {title}: done, in {found['seconds']:.0f} s", flush=True)
            yield False
            return
        print(f"\n== {title}", flush=True)
        start = time.perf_counter()
        yield True
        seconds = time.perf_counter() - start
        atomic.write_json(note, {"settings": settings, "seconds": seconds})
        print(f"-- {seconds:.0f} s", flush=True)

    def run(self, module: str, *arguments: object) -> None:
        """Run `python -m module arguments` after printing it."""
        words = ["-m", module, *map(str, arguments)]
        print(f"$ python {shlex.join(words)}", flush=True)
        _check(subprocess.run([sys.executable, *words], check=False).returncode, module)

    def shell(self, script: Path, environment: dict[str, Path], *arguments: str) -> None:
        """Run a shell script after printing it, with these variables set."""
        given = {name: str(value) for name, value in environment.items()}
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
        print(f"$ {shown} bash {shlex.join([str(script), *arguments])}", flush=True)
        given["PYTHON"] = sys.executable
        done = subprocess.run(["bash", str(script), *arguments], env={**os.environ, **given}, check=False)
        _check(done.returncode, script.name)


def _check(code: int, what: str) -> None:
    if code:
        raise StageError(f"{what} failed with exit code {code}; what it wrote stands above")


def parse_road(argv: Sequence[str] | None, *, prog: str, description: str, output: str) -> Road:
    """The road that a command line asks for; `output` is the default folder."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=formatter)
    parser.add_argument("--output", type=Path, default=Path(output), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn by chance (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=Road.videos, help="in the world (default: %(default)s)")
    parser.add_argument("--records", type=int, default=Road.records, help="for SFT (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Road.steps, help="of GRPO (default: %(default)s)")
    args = parser.parse_args(argv)
    return Road(args.output, seed=args.seed, videos=args.videos, records=args.records, steps=args.steps)
