"""Command-line options that `predict` and `segment` share, and what they build: policy, tracker, sampling."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from inference.pipeline import Sampling
from veason import policies, prompt, trackers
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.policies.base import Policy
from veason.trackers.base import Tracker
from veason.types import Size

FAMILY_PIXELS = 28 * 28
"""Of a picture that one token stands for; no supported family has fewer."""
TEXT_TOKENS = 4096
"""Room for a prompt's text."""

VERSIONED = ("torch", "transformers", "sam2", "numpy", "opencv-python-headless", "pillow", "pycocotools", "scipy")


def parse_size(text: str) -> Size:
    """``560`` or ``HxW`` as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 0 < int(side) < 1 << 15 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a side or HEIGHTxWIDTH in pixels, found {text!r}")
    return (int(sides[0]), int(sides[-1]))


def add_policy_options(parser: argparse.ArgumentParser, choices: tuple[str, ...] = policies.NAMES) -> None:
    group = parser.add_argument_group("policy: who names the keyframe and the boxes")
    group.add_argument("--policy", choices=choices, default=choices[0], help="default: %(default)s")
    group.add_argument(
        "--model", metavar="DIR", help="hf, vllm: checkpoint folder (weights, tokenizer, processor) or hub name"
    )
    group.add_argument("--replay", metavar="FILE", help="replay: a predictions.jsonl, or lines with keyframe and boxes")
    group.add_argument("--frames", type=int, default=8, metavar="N", help="frames shown, evenly spaced (default: 8)")
    group.add_argument(
        "--model-size",
        type=parse_size,
        default=(560, 560),
        metavar="S|HxW",
        help="pixels the frames are shown at, a multiple of 28 (default: 560)",
    )
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="hf, vllm: expressions answered together (default: 1)"
    )
    group.add_argument(
        "--max-new-tokens", type=int, default=1024, metavar="N", help="hf, vllm: longest reply (default: 1024)"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="hf, vllm: 0 is greedy (default: 0)")
    group.add_argument("--seed", type=int, default=0, help="hf, vllm: seed of sampled replies (default: 0)")
    group.add_argument(
        "--prompt-template", type=Path, metavar="FILE", help="hf, vllm: another wording, for weights trained with it"
    )
    group.add_argument("--dtype", default="auto", help="hf, vllm: auto, float32, bfloat16 or float16 (default: auto)")


def add_tracker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tracker: who turns the boxes into masks on every frame")
    group.add_argument(
        "--tracker", choices=trackers.TRACKERS, default="grabcut", help="default: %(default)s, needs no weights"
    )
    group.add_argument(
        "--sam2-config",
        metavar="NAME|FILE",
        default="configs/sam2.1/sam2.1_hiera_l.yaml",
        help="sam2: a config of the package or a YAML file (default: %(default)s)",
    )
    group.add_argument(
        "--sam2-checkpoint", metavar="FILE", help="sam2: weights (.pt or .safetensors) that go with the config"
    )
    group.add_argument(
        "--sam2-offload", action="store_true", help="sam2: keep features and memory bank on the CPU, to save GPU memory"
    )
    group.add_argument(
        "--sam2-spill-dir",
        type=Path,
        metavar="DIR",
        help="sam2: where features beyond 4 GiB a video go (default: TMPDIR)",
    )
    group.add_argument(
        "--device", metavar="D", help="torch device of hf and sam2 (default: cuda if there is one, else cpu)"
    )


def build_sampling(args: argparse.Namespace) -> Sampling:
    if args.frames < 1 or args.batch_size < 1 or args.max_new_tokens < 1 or args.temperature < 0:
        raise DataError("--frames, --batch-size and --max-new-tokens must be at least 1, --temperature at least 0")
    return Sampling(n=args.frames, size=args.model_size)


def build_policy(args: argparse.Namespace, dataset: Dataset | None) -> Policy:
    """The policy that the options ask for; heavy imports happen here."""
    if args.policy == "oracle":
        from veason.policies.oracle import OraclePolicy

        assert dataset is not None, "the oracle needs a data set"
        return OraclePolicy(dataset)
    if args.policy == "replay":
        from veason.policies.replay import ReplayPolicy

        return ReplayPolicy.from_file(
            _required(args.replay, "--policy replay needs --replay FILE"), n=args.frames, size=args.model_size
        )
    model = _required(args.model, f"--policy {args.policy} needs --model DIR")  # before torch is imported
    how = {
        "device": args.device,
        "dtype": args.dtype,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "template": prompt.load_template(args.prompt_template),
    }
    if args.policy == "vllm":
        return _vllm(model, args, how)
    from veason.policies.hf import HFPolicy

    return HFPolicy(model, **how)


def _vllm(model: str, args: argparse.Namespace, how: dict[str, Any]) -> Policy:
    """With room for the pictures, as much text as a prompt and an expression have, and the reply."""
    from veason.policies.vllm import VLLMPolicy

    pictures = args.frames * args.model_size[0] * args.model_size[1] // FAMILY_PIXELS
    return VLLMPolicy(model, max_model_len=pictures + TEXT_TOKENS + args.max_new_tokens, **how)


def build_tracker(args: argparse.Namespace) -> Tracker:
    if args.tracker == "grabcut":
        return trackers.open_tracker("grabcut")
    checkpoint = _required(args.sam2_checkpoint, "--tracker sam2 needs --sam2-checkpoint FILE")
    return trackers.open_tracker(
        "sam2",
        config=args.sam2_config,
        checkpoint=checkpoint,
        device=args.device,
        offload_features_to_cpu=args.sam2_offload,
        offload_state_to_cpu=args.sam2_offload,
        spill_dir=args.sam2_spill_dir,
    )


def _required(value: Any, message: str) -> Any:
    if value is None:
        raise DataError(message)
    return value


def versions(*, tracker: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    if tracker == "sam2":  # without it, small holes in masks stay
        found["sam2 C extension"] = "present" if importlib.util.find_spec("sam2._C") else "missing"
    return found


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main: what the user can put right becomes one line and exit code 2, the rest a traceback."""
    try:
        main()
    except DataError as error:
        _stop("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(f"error: no space left ({error.filename or error}); free some and run the same command again")
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on where this one was")


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)
