"""Asks a strong vision-language model to explain the ground truth: a chain of thought per expression. Resumable.

The server is any OpenAI-compatible one; the key is OPENAI_API_KEY, the address --base-url or OPENAI_BASE_URL:

    python training_data_construction/seed_cot_generation.py --meta_json ROOT/meta_expressions_train_select.json \\
        --mask_dict ROOT/mask_dict.json --data_path ROOT/JPEGImages --output_json cot.json \\
        --base-url http://127.0.0.1:8000/v1 --model MODEL

--dry-run writes the first request to a file and sends nothing. Two files are written beside the output: its journal
(OUTPUT.journal.jsonl), which holds every answer as soon as it arrives, and OUTPUT.rejects.jsonl, which lists the
samples without a record and the reason. A run that was stopped, killed or left with failures continues with the same
command and requests only the missing answers. With a higher --max-retries it requests the rejected samples again.

Exit codes: 0 every sample is settled, 1 some samples got no answer or no answer was usable, 2 an error that the user
can correct, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: put the repository on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training_data_construction import cot_prompts, cot_requests, cot_tasks
from training_data_construction.cot_journal import CotJournal
from training_data_construction.cot_replies import REASONS
from training_data_construction.cot_tasks import Rules
from veason import atomic, command, prompt
from veason.datasets import scored
from veason.datasets.base import sha256
from veason.datasets.revos import ReVOS
from veason.errors import DataError
from veason.exclude import read_exclude
from veason.family import QWEN2_5_VL
from veason.files import folder_fingerprint
from veason.worker_pool import WorkerPool

logger = logging.getLogger("training_data_construction.seed_cot_generation")  # also when run as a file

DEFAULT_MODEL = "doubao-1-5-thinking-vision-pro"
"""The paper's teacher."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--meta_json", "--meta-json", type=Path, required=True, metavar="FILE",
        help="expressions, such as meta_expressions_train_select.json")  # fmt: skip
    add("--mask_dict", "--mask-dict", type=Path, required=True, metavar="FILE", help="mask_dict.json")
    add("--data_path", "--data-path", type=Path, required=True, metavar="DIR", help="folder of the videos: JPEGImages")
    add(
        "--output_json",
        "--output-json",
        type=Path,
        required=True,
        metavar="FILE",
        help="output file of the records; resumable",
    )
    add("--exclude", type=Path, metavar="FILE", help="samples to leave out, one video/exp_id per line")
    add("--prompt-template", type=Path, metavar="FILE", help="another prompt of the policy, for the records")
    add(scored.OPTION, action="store_true", help="also use samples that a benchmark scores")

    add = parser.add_argument_group("teacher").add_argument
    add(
        "--base-url", default=os.environ.get("OPENAI_BASE_URL"), help="address of the server (default: OPENAI_BASE_URL)"
    )
    add("--model", default=DEFAULT_MODEL, help="name of the model (default: %(default)s)")
    add("--temperature", type=float, default=0.7, help="sampling temperature (default: %(default)s)")
    add(
        "--max-tokens", type=positive, default=2048, help="largest number of tokens of an answer (default: %(default)s)"
    )
    add("--timeout", type=positive_float, default=300, help="time limit of a request in seconds (default: %(default)s)")
    add("--max-retries", type=natural, default=8,
        help="number of retries of a failed request and of an unusable answer (default: %(default)s)")  # fmt: skip
    add("--rate-limit", type=positive_float, metavar="N", help="send at most N requests per minute")
    add("--concurrency", type=positive, default=64, help="number of requests in flight (default: %(default)s)")
    add("--price-in", type=float, default=0.0, help="price of a million prompt tokens")
    add("--price-out", type=float, default=0.0, help="price of a million completion tokens")

    add = parser.add_argument_group("task").add_argument
    add("--max_samples_per_video", "--max-samples-per-video", type=positive, default=10, metavar="N",
        help="largest number of expressions of one video (default: %(default)s)")  # fmt: skip
    add("--frames", type=positive, default=8, help="largest number of shown frames (default: %(default)s)")
    add("--model-size", type=positive, default=560, help="side of the policy's frames in pixels (default: %(default)s)")
    add("--box-decimals", type=int, choices=(0, 1, 2), default=2, help="decimals of the boxes (default: %(default)s)")
    add("--seed", type=int, default=42, help="default: %(default)s")

    add = parser.add_argument_group("run").add_argument
    add("--num_workers", "--num-workers", type=positive, default=min(32, os.cpu_count() or 1), metavar="N",
        help="number of processes that build requests (default: one per core)")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="use only the first N samples; run without it to continue")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="continue an earlier run (default); --no-resume refuses to if there is one")  # fmt: skip
    add("--accept-changed-inputs", action="store_true",
        help="continue although masks or frames have changed since the first answers, or are copies")  # fmt: skip
    add("--dry-run", action="store_true", help="write the first request to a file beside the output and send nothing")
    return parser


def positive(text: str) -> int:
    return _number(int, text, lambda value: value >= 1, "a whole number from 1 up")


def natural(text: str) -> int:
    return _number(int, text, lambda value: value >= 0, "a whole number from 0 up")


def positive_float(text: str) -> float:
    return _number(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def _number(kind: type, text: str, fits: Any, wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}")
    return value


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if not args.data_path.is_dir():
        raise DataError(f"{args.data_path}: no such folder; --data_path is the folder that holds the videos' frames")
    dataset = ReVOS(args.data_path, split="train", image_root=args.data_path, meta=args.meta_json, masks=args.mask_dict)
    roots = [args.meta_json.parent, args.mask_dict.parent]
    for line in scored.check_file(args.meta_json, roots=roots, allowed=args.allow_scored_split):
        logger.warning("%s", line)
    size = QWEN2_5_VL.check_size((args.model_size, args.model_size))
    rules = Rules(seed=args.seed, frames=args.frames, model_size=size, box_decimals=args.box_decimals)
    exclude = read_exclude(args.exclude) if args.exclude else frozenset()
    numbers, left_out = cot_tasks.choose(dataset, per_video=args.max_samples_per_video, seed=args.seed, exclude=exclude)
    if not numbers:
        raise DataError(f"{args.meta_json}: no sample is left of {len(dataset)} ({_listed(left_out)})")
    numbers = numbers[: args.limit]
    dataset.object_rles(dataset[numbers[0]])  # the index of the masks is read once, before it goes to the workers
    if args.dry_run:
        _write_dry_run(dataset, numbers, rules, args.output_json)
        return 0
    print(f"{args.meta_json}: {len(numbers)} of {len(dataset)} expressions ({_listed(left_out) or 'none left out'})")

    # Everything that decides the answers: an output holds one kind. Not the address (a server of the same model may
    # move), the length of an answer (one that was cut off is asked for again), nor how fast or how many are asked.
    names = ("model", "temperature", "max_samples_per_video", "frames", "model_size", "box_decimals", "seed")
    template = prompt.load_template(args.prompt_template)
    settings = {
        **{name: getattr(args, name) for name in names},
        "meta_sha256": sha256(args.meta_json),
        "masks_bytes": args.mask_dict.stat().st_size,
        "exclude": _short_hash("\n".join(sorted(exclude))),
        "prompt_template": _short_hash(template),
        "instructions": cot_prompts.fingerprint(),
    }
    # fingerprints: of the masks by content, of the frames of each video by name, size and time
    inputs = {"the masks": sha256(dataset.files["masks"])[:16]}
    for video, sample in sorted({dataset[number].video: dataset[number] for number in reversed(numbers)}.items()):
        paths = (sample.frame_path(t) for t in range(len(sample)))
        found = folder_fingerprint(path for path in paths if path.is_file())  # a missing one is an error when shown
        inputs[f"the frames of {video}"] = found["names_and_times"]
    with CotJournal(
        args.output_json,
        settings=settings,
        inputs=inputs,
        accept_changes=args.accept_changed_inputs,
        resume=args.resume,
    ) as journal:
        return _generate(args, dataset, numbers, rules, journal)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _generate(args: argparse.Namespace, dataset: ReVOS, numbers: list[int], rules: Rules, journal: CotJournal) -> int:
    """Asks about the samples without a record, writes the records and prints the counts; returns the exit code."""
    keys = [dataset[number].key for number in numbers]
    enough = args.max_retries + 1
    missing = [
        number
        for number, key in zip(numbers, keys, strict=True)
        if key not in journal.settled and journal.rejections[key] < enough
    ]
    failures: list[tuple[str, str]] = []
    if missing:
        from training_data_construction.cot_run import Stopped  # seconds: the HTTP client

        try:
            failures = asyncio.run(_ask(args, dataset, missing, rules, journal, total=len(numbers)))
        except Stopped as stop:
            if stop.number == signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)  # ends the command as SIGTERM ends any other
            raise KeyboardInterrupt from None
    outcome = journal.assemble(keys, failures=failures)
    print(f"{args.output_json}: {outcome.records} records")
    if outcome.no_target:
        print(f"{outcome.no_target:8d}  have their target in no frame")
    for reason, count in outcome.rejected.most_common():
        print(f"{count:8d}  rejected: {REASONS[reason]}")
    if outcome.missing:
        print(f"{outcome.missing:8d}  got no answer; run the same command again")
    if outcome.rejected and not outcome.records:
        print("          no answer was usable: check the teacher and the prompts")
    if outcome.rejected or outcome.missing:
        print(f"          see {journal.rejects_path}")
    tally, cost = journal.tally, ""
    if args.price_in or args.price_out:
        cost = f", cost {tally.cost(args.price_in, args.price_out):.2f}"
    tokens = f"{tally.prompt_tokens} prompt and {tally.completion_tokens} completion tokens"
    print(f"{tally.answers:8d}  answers paid for: {tokens}{cost}")
    return 1 if outcome.missing or (outcome.rejected and not outcome.records) else 0


async def _ask(
    args: argparse.Namespace, dataset: ReVOS, missing: list[int], rules: Rules, journal: CotJournal, *, total: int
) -> list[tuple[str, str]]:
    """Asks about the `missing` samples, of `total`; returns those that got no answer, each with the last error."""
    from training_data_construction import cot_progress, cot_run  # seconds: the HTTP client
    from veason.chat import Request

    if not args.base_url:
        raise DataError("no server to ask: give --base-url or set OPENAI_BASE_URL")
    request = Request(
        model=args.model,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        max_retries=args.max_retries,
    )
    key = os.environ.get("OPENAI_API_KEY")
    teacher = cot_run.Teacher(request, base_url=args.base_url, api_key=key, per_minute=args.rate_limit)
    async with teacher:
        with (
            WorkerPool(cot_requests.build_some, (dataset, rules), workers=args.num_workers) as pool,
            cot_progress.Progress(total, done=total - len(missing), retries=teacher.problems) as progress,
        ):
            run = cot_run.CotRun(
                teacher=teacher,
                journal=journal,
                progress=progress,
                seed=args.seed,
                max_rejections=args.max_retries + 1,
                concurrency=min(args.concurrency, len(missing)),
                template=prompt.load_template(args.prompt_template),
            )
            await run.run(missing, pool, ahead=cot_requests.TOGETHER * args.num_workers + args.concurrency // 4)
        return run.failures


def _write_dry_run(dataset: ReVOS, numbers: list[int], rules: Rules, output: Path) -> None:
    """Writes the first request beside the output in a readable form: a contact sheet and the text."""
    requests = (cot_requests.build(dataset, number, rules) for number in numbers)
    request = next((request for request in requests if request.task is not None), None)
    if request is None or request.task is None:
        raise DataError(f"none of {len(numbers)} samples has its target in any frame: there is nothing to ask")
    parts = request.messages[-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    texts = [part.get("text", "<picture>") for part in parts]
    picture, text = (output.with_name(f"{output.name}.dry_run.{suffix}") for suffix in ("png", "txt"))
    sheet = io.BytesIO()
    cot_requests.contact_sheet(urls, texts[: 2 * len(urls) : 2]).save(sheet, format="PNG")
    atomic.write_bytes(picture, sheet.getvalue())
    shown = "\n\n".join([request.messages[0]["content"], *texts]) + "\n"
    atomic.write_bytes(text, shown.encode("utf-8", "replace"))
    print(f"{request.key}: keyframe {request.task.answer.keyframe}, {len(urls)} frames; nothing was sent")
    print(f"wrote     {picture}\nwrote     {text}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(command.run_command(main))
