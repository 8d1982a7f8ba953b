"""The command-line options that `predict` and `segment` share, and the policy, tracker and sampling made of them."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inference import policies
from inference.output import MASKS
from inference.pipeline import Sampling
from inference.policies import Policy
from veason import prompt, prompt_settings, trackers
from veason.answer import READINGS
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.trackers.base import Tracker
from veason.types import Size

_log = logging.getLogger(__name__)

PIXELS_PER_TOKEN = 28 * 28
"""The pixels of a picture that one token stands for; no supported family has fewer."""
TEXT_TOKENS = 4096
"""The tokens kept for the text of a prompt."""

DEFAULT_FRAMES, DEFAULT_SIZE, DEFAULT_TOKENS = 8, (560, 560), 1024
"""The prompt settings where neither the user nor the checkpoint's ``veason.json`` gives them."""

GPU_SHARES = (0.7, 0.3)
"""The shares of a GPU's memory for policy and tracker. By the bytes of tensors, counted on a CPU
(`benchmarks.bench_memory`), SAM2.1 hiera-large takes 5.3 GiB with its features; 24 GiB hold Qwen2.5-VL-7B's 15.4 GiB of
weights beside it."""

VERSIONED = ("torch", "transformers", "sam2", "numpy", "opencv-python-headless", "pillow", "pycocotools", "scipy")


def parse_size(text: str) -> Size:
    """Parses ``560`` or ``HxW`` as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 0 < int(side) < 1 << 15 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a side or HEIGHTxWIDTH in pixels, found {text!r}")
    return (int(sides[0]), int(sides[-1]))


def add_policy_options(
    parser: argparse.ArgumentParser, choices: tuple[str, ...] = policies.NAMES, default: str | None = None
) -> None:
    """Adds the options that choose and set up a policy.

    default: which of the `choices` is taken where none is given, in words; without it that is the first.
    """
    group = parser.add_argument_group("policy, which names the keyframe and the boxes")
    parser.set_defaults(template_text=None)  # of the prompt, once `settle` has read it; None is the built-in one
    first = choices[0] if default is None else None
    group.add_argument("--policy", choices=choices, default=first, help=f"default: {default or first}")
    trained = "the value that the checkpoint was trained with, else"
    group.add_argument(
        "--model",
        metavar="DIR|NAME",
        help="hf, vllm: checkpoint folder (weights, tokenizer, processor) or hub name; openai: its name on the server",
    )
    group.add_argument("--replay", metavar="FILE", help="replay: a predictions.jsonl, or lines with keyframe and boxes")
    group.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help=f"number of frames shown, evenly spaced (default: {trained} {DEFAULT_FRAMES})",
    )
    group.add_argument(
        "--model-size",
        type=parse_size,
        metavar="S|HxW",
        help=f"size of the shown frames in pixels, a multiple of 28 (default: {trained} {DEFAULT_SIZE[0]})",
    )
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="hf, vllm: number of expressions per batch (default: 1)"
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"hf, vllm, openai: largest number of tokens of a reply (default: {trained} {DEFAULT_TOKENS})",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="hf, vllm, openai: sampling temperature; 0 is greedy (default: 0)",
    )
    group.add_argument("--seed", type=int, default=0, help="hf, vllm, openai: seed of sampled replies (default: 0)")
    group.add_argument(
        "--prompt-template",
        type=Path,
        metavar="FILE",
        help=f"file with another prompt, for weights that were trained with it (default: {trained} the built-in one)",
    )
    group.add_argument(
        "--generation-defaults",
        choices=("plain", "checkpoint"),
        default="plain",
        help="hf, vllm: plain decodes with these options alone, as GRPO's rollouts do; checkpoint also uses the "
        "settings of the checkpoint's generation_config.json, such as a repetition penalty (default: %(default)s)",
    )
    group.add_argument(
        "--reading",
        choices=READINGS,
        default=READINGS[0],
        help="lenient also parses replies with code fences, objects for boxes, numbers as text and the like, and "
        "records these deviations; strict parses as the reward does (default: %(default)s)",
    )
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="hf, vllm, openai: continue even if none of the first replies is usable",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        help="hf, vllm: number type of the weights: auto, float32, bfloat16 or float16 (default: auto)",
    )
    _add_server_options(parser.add_argument_group("server of --policy openai"))


def _add_server_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--base-url",
        metavar="URL",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="address of the server, such as http://127.0.0.1:8000/v1 for a `vllm serve` (default: OPENAI_BASE_URL)",
    )
    group.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        default="OPENAI_API_KEY",
        help="environment variable that holds the key; a server on this machine needs none (default: %(default)s)",
    )
    group.add_argument(
        "--requests",
        type=int,
        default=32,
        metavar="N",
        help="largest number of requests in flight (default: %(default)s)",
    )
    group.add_argument(
        "--max-retries",
        type=int,
        default=8,
        metavar="N",
        help="number of retries of a request that got no reply (default: 8)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="time limit of one attempt in seconds (default: %(default)g)",
    )
    group.add_argument(
        "--forbid-tokens",
        type=parse_ids,
        default=(),
        metavar="ID,ID",
        help="ids of tokens that must not be generated, sent as logit_bias: the vision control tokens of the model, "
        "which the other policies read from its config",
    )


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "workers, with a policy and a tracker each, as Ray actors; without these options one process does everything"
    )
    group.add_argument("--gpus", type=int, metavar="N", help="start one worker on each of N GPUs")
    group.add_argument("--workers", type=int, metavar="N", help="start N workers on CPUs")
    group.add_argument(
        "--address",
        metavar="auto|HOST:PORT",
        default=os.environ.get("RAY_ADDRESS"),
        help="address of a running Ray cluster, whose nodes must see data and checkpoints at the same paths (default: "
        "RAY_ADDRESS, else a cluster is started on this machine for this run)",
    )
    group.add_argument(
        "--stuck-after",
        type=float,
        default=3600.0,
        metavar="S",
        help="seconds in which a worker must finish a unit of up to 8 expressions of a video; a worker that does not "
        "is replaced and its tasks are done again (default: %(default)g)",
    )
    group.add_argument(
        "--policy-gpus",
        type=float,
        default=GPU_SHARES[0],
        metavar="SHARE",
        help="share of a worker's GPU memory for hf or vllm (default: %(default)g; 7B in bfloat16 takes 16 GB)",
    )
    group.add_argument(
        "--tracker-gpus",
        type=float,
        default=GPU_SHARES[1],
        metavar="SHARE",
        help="share of a worker's GPU memory for sam2 (default: %(default)g; less is enough with --sam2-offload)",
    )


def add_mask_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--masks",
        choices=MASKS,
        default=MASKS[0],
        help="format of the masks: png is 8-bit PNGs, png1 is 1-bit PNGs (smaller, faster to read), rle is one "
        "masks.jsonl with RLEs (default: %(default)s)",
    )


def parse_ids(text: str) -> tuple[int, ...]:
    """Parses token ids such as ``1,2,3``."""
    ids = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,9}", token) for token in ids):
        raise argparse.ArgumentTypeError(f"expected token ids such as 151652,151653, found {text!r}")
    return tuple(map(int, ids))


def add_tracker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tracker, which turns the boxes into masks on every frame")
    group.add_argument(
        "--tracker", choices=trackers.TRACKERS, default="grabcut", help="default: %(default)s, which needs no weights"
    )
    group.add_argument(
        "--sam2-config",
        metavar="NAME|FILE",
        default="configs/sam2.1/sam2.1_hiera_l.yaml",
        help="sam2: a config of the package or a YAML file (default: %(default)s)",
    )
    group.add_argument(
        "--sam2-checkpoint", metavar="FILE", help="sam2: weights (.pt or .safetensors) that match the config"
    )
    group.add_argument(
        "--sam2-offload", action="store_true", help="sam2: keep features and memory bank on the CPU, to save GPU memory"
    )
    group.add_argument(
        "--sam2-spill-dir",
        type=Path,
        metavar="DIR",
        help="sam2: folder for features beyond 4 GiB per video (default: TMPDIR)",
    )
    group.add_argument(
        "--device", metavar="D", help="torch device of hf and sam2 (default: cuda if there is one, else cpu)"
    )


def settle(args: argparse.Namespace) -> None:
    """Fills in the prompt settings that the user did not give: those the checkpoint was trained with, if it has them.

    Where the user's differ from the checkpoint's, a message says so. `args` gains ``template_text``.
    """
    folder = Path(args.model) if args.policy in ("hf", "vllm") and args.model else None
    trained = prompt_settings.read(folder) if folder is not None and folder.is_dir() else None
    args.template_text = prompt.load_template(args.prompt_template) if args.prompt_template else None
    if folder is not None and trained is not None:
        path = folder / prompt_settings.NAME
        given = {
            "frames": args.frames,
            "size": args.model_size,
            "max_new_tokens": args.max_new_tokens,
            "prompt_template": args.template_text,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        for difference in prompt_settings.differences(trained, **chosen):
            _log.info("note: %s (%s)", difference, path)
        if len(chosen) < len(given):
            _log.info(
                "%s: prompts are built as in its training, except for options that are given: --frames %d "
                "--model-size %s --max-new-tokens %d",
                *(path, trained.frames, "x".join(map(str, trained.size)), trained.max_new_tokens),
            )
        if args.template_text is None and trained.prompt_template is not None:
            args.template_text = prompt.check_template(trained.prompt_template, f"{path}: prompt_template")
    if args.frames is None:
        args.frames = trained.frames if trained else DEFAULT_FRAMES
    if args.model_size is None:
        args.model_size = trained.size if trained else DEFAULT_SIZE
    if args.max_new_tokens is None:
        args.max_new_tokens = trained.max_new_tokens if trained else DEFAULT_TOKENS
    args.template_text = args.template_text or prompt.load_template()


def build_sampling(args: argparse.Namespace) -> Sampling:
    """Builds the sampling of frames and checks the other options of policies; `settle` has to come first."""
    if args.frames < 1 or args.batch_size < 1 or args.max_new_tokens < 1 or not 0 <= args.temperature < math.inf:
        raise DataError("--frames, --batch-size and --max-new-tokens must be at least 1, --temperature at least 0")
    if args.requests < 1 or args.max_retries < 0 or not 0 < args.timeout < math.inf:
        raise DataError("--requests must be at least 1, --max-retries at least 0, --timeout above 0 seconds")
    return Sampling(n=args.frames, size=args.model_size)


def check_workers(args: argparse.Namespace) -> bool:
    """Tells whether the run is to go to workers; DataError for options that do not make sense together."""
    if args.gpus is not None and args.workers is not None:
        raise DataError("--gpus N puts a worker on each of N GPUs, --workers N puts N on CPUs; give one of them")
    count = args.gpus if args.gpus is not None else args.workers
    if count is not None and count < 1:
        raise DataError(f"--gpus and --workers must be at least 1, found {count}")
    if not 0 < args.stuck_after < math.inf:
        raise DataError(f"--stuck-after must be a number of seconds above 0, found {args.stuck_after:g}")
    shares = (args.policy_gpus, args.tracker_gpus)
    if not all(0 < share < 1 for share in shares) or sum(shares) > 1:
        raise DataError(f"--policy-gpus and --tracker-gpus are shares of one GPU, found {shares[0]:g} + {shares[1]:g}")
    return count is not None


def build_policy(args: argparse.Namespace, dataset: Dataset | None) -> Policy:
    """Builds the policy that the options ask for, of `policies.NAMES`; heavy imports happen here."""
    if args.policy == "oracle":
        from inference.policies.oracle import OraclePolicy

        assert dataset is not None, "the oracle needs a data set"
        return OraclePolicy(dataset)
    if args.policy == "replay":
        from inference.policies.replay import ReplayPolicy

        path = _required(args.replay, "--policy replay needs --replay FILE")
        return ReplayPolicy.from_file(path, n=args.frames, size=args.model_size)
    answering = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "template": args.template_text,
    }
    if args.policy == "openai":
        model = _required(args.model, "--policy openai needs --model NAME")
        base_url = _required(args.base_url, "--policy openai needs --base-url URL, or OPENAI_BASE_URL")
        from inference.policies.openai import OpenAIPolicy

        return OpenAIPolicy(
            model,
            base_url=base_url,
            api_key_env=args.api_key_env,
            requests=args.requests,
            max_retries=args.max_retries,
            timeout=args.timeout,
            forbidden=args.forbid_tokens,
            **answering,
        )
    model = _required(args.model, f"--policy {args.policy} needs --model DIR")  # before torch is imported
    from inference.policies.engine import EnginePolicy

    pictures = args.frames * args.model_size[0] * args.model_size[1] // PIXELS_PER_TOKEN
    memory = {"gpu_memory": args.policy_gpus} if "policy_gpus" in args else {}
    return EnginePolicy(
        args.policy,
        model,
        device=args.device,
        dtype=args.dtype,
        generation_defaults=args.generation_defaults,
        batch_size=args.batch_size,
        max_model_len=pictures + TEXT_TOKENS + args.max_new_tokens,  # pictures, text and reply
        **memory,
        **answering,
    )


ON_GPU = {"hf", "vllm", "sam2"}
"""The policies and trackers that use a GPU where there is one."""


def asking(args: argparse.Namespace) -> dict[str, int]:
    """Chooses how `pipeline.ask` asks: a server takes questions one by one and many at once, a model in batches."""
    if args.policy == "openai":
        return {"batch_size": 1, "in_flight": args.requests}
    return {"batch_size": args.batch_size, "in_flight": 1}


def build_tracker(args: argparse.Namespace) -> Tracker:
    """Builds the tracker that the options ask for."""
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


def public(policy: dict[str, Any]) -> dict[str, Any]:
    """Leaves a server's address, which may change and may be private, out of a policy's description for a record."""
    return {name: value for name, value in policy.items() if name != "base_url"}


def _required(value: Any, message: str) -> Any:
    if value is None:
        raise DataError(message)
    return value


def versions(*, tracker: str) -> dict[str, str]:
    """Lists the versions of Python and of the packages that the results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    if tracker == "sam2":  # without it, small holes in masks stay
        found["sam2 C extension"] = "present" if importlib.util.find_spec("sam2._C") else "missing"
    return found
