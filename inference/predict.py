"""Predicts masks for a data set: asks a policy, tracks its boxes, writes a run folder. Run it again to resume.

Example, ground-truth boxes tracked without any weights:

    python -m inference.predict --dataset revos --data-root ROOT --split valid \\
        --policy oracle --tracker grabcut --output runs/oracle

A checkpoint with SAM2:

    python -m inference.predict --dataset revos --data-root ROOT --split valid \\
        --policy hf --model CKPT --tracker sam2 --sam2-checkpoint sam2.1_hiera_large.pt --output runs/veason-3b

The same on eight GPUs of this machine, or of a Ray cluster with --address; a model behind a server:

    python -m inference.predict … --policy hf --model CKPT --tracker sam2 --sam2-checkpoint … --gpus 8
    python -m inference.predict … --policy openai --base-url http://127.0.0.1:8000/v1 --model NAME --workers 4

Then `python -m eval.revos --gt ROOT --pred runs/veason-3b --out runs/veason-3b/scores`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inference import options, pipeline, replies, run_record
from inference.output import RunFolder, Shard, prediction_record
from veason import datasets
from veason.atomic import read_journal
from veason.command import run_command
from veason.datasets.base import sha256
from veason.errors import DataError
from veason.safe_text import printable
from veason.types import VideoSample

MAY_DIFFER = {
    *("output", "shard", "gpus", "workers", "address", "policy_gpus", "tracker_gpus", "stuck_after"),
    *("base_url", "api_key_env", "requests", "max_retries", "timeout"),
    *("keep_going", "template_text"),
}
"""The options that do not change the results: a resumed run may have others, and they are not recorded."""


def parse_shard(text: str) -> Shard:
    """Parses ``i/n`` with i from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 0 to n-1, found {text!r}")
    return Shard(index=int(index), count=int(count))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=datasets.NAMES, default="revos", help="benchmark (default: %(default)s)")
    data.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data set")
    data.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if not at their place below DATA_ROOT"
    )
    data.add_argument("--meta", type=Path, metavar="FILE", help="another expression file, such as a sampled subset")
    data.add_argument("--split", help="default: the one that can be scored offline (valid; mevis: valid_u, …)")
    data.add_argument("--output", type=Path, required=True, metavar="DIR", help="run folder; an unfinished run goes on")
    data.add_argument(
        "--shard", type=parse_shard, default=Shard(), metavar="i/n", help="do the i-th of n parts, i from 0"
    )
    data.add_argument("--limit", type=int, metavar="N", help="only the first N expressions of the split")
    options.add_mask_options(data)
    options.add_policy_options(parser)
    options.add_tracker_options(parser)
    options.add_worker_options(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit must be at least 1, found {args.limit}")
    options.settle(args)
    sampling, on_workers = options.build_sampling(args), options.check_workers(args)
    dataset = datasets.open_dataset(
        args.dataset, args.data_root, split=args.split, image_root=args.image_root, meta=args.meta
    )
    everything = list(dataset)
    videos = {sample.frame_dir.resolve() for sample in everything} | {p.resolve() for p in (args.image_root,) if p}
    output = args.output.resolve()
    if videos.intersection((output, *output.parents)) or output == args.data_root.resolve():
        raise DataError(f"--output {args.output} is, or lies in, a folder of the data set; choose another one")
    samples = everything[: args.limit]
    with RunFolder(
        args.output,
        shard=args.shard,
        samples=samples,
        record=record(args, dataset, everything, limit=len(samples)),
        masks=args.masks,
    ) as folder:
        if len(folder.done) < len(folder.samples):
            made = (_predict_on_workers if on_workers else _predict_here)(args, dataset, sampling, folder)
            watch = replies.Watch() if args.policy in ("hf", "vllm", "openai") and not args.keep_going else None
            bar = tqdm(total=len(folder.samples), initial=len(folder.done), unit="exp", disable=None, desc="predict")
            with bar, contextlib.closing(made):
                for prediction in made:
                    bar.update()
                    if watch is not None:
                        watch.add(prediction)
        complete = folder.join()
    if complete:
        for line in replies.summary(read_journal(args.output / "predictions.jsonl"), printable(args.output)):
            print(line)
    else:
        print(
            f"{printable(args.output)}: this shard is done; others are not, or are damaged, so predictions.jsonl is "
            "not joined yet: run the same command for each of them"
        )


def record(
    args: argparse.Namespace, dataset: datasets.Dataset, samples: Sequence[VideoSample], *, limit: int
) -> dict[str, Any]:
    """Makes the content of ``run.json``: everything that the results depend on.

    samples: of the whole split; the first `limit` of them are predicted.
    """
    loads, looks = args.policy in ("hf", "vllm"), args.policy in ("hf", "vllm", "openai")
    unused = () if loads else ("generation_defaults",)
    chosen = {key: value for key, value in vars(args).items() if key not in MAY_DIFFER and key not in unused}
    return {
        "settings": {
            **{key: str(value) if isinstance(value, Path) else value for key, value in chosen.items()},
            "shards": args.shard.count,
            "split": dataset.split,
            "samples": limit,
            "meta_sha256": sha256(dataset.files["meta"]),
        },
        "versions": options.versions(tracker=args.tracker),
        "inputs": run_record.inputs(
            dataset,
            samples,
            model=args.model if loads else None,
            tracker=(args.sam2_config, args.sam2_checkpoint) if args.tracker == "sam2" else (),
            replay=args.replay if args.policy == "replay" else None,
            template=args.template_text if looks else None,
        ),
    }


Predictions = Generator[dict[str, Any], None, None]
"""The lines of ``predictions.jsonl``, each coming out once it is on the disk."""


def _predict_here(
    args: argparse.Namespace, dataset: datasets.Dataset, sampling: pipeline.Sampling, folder: RunFolder
) -> Predictions:
    """Predicts in this process, in the order of the data set."""
    policy, tracker = options.build_policy(args, dataset), options.build_tracker(args)
    policy.family.check_size(sampling.size)
    folder.describe(options.public(policy.describe()))
    asking = options.asking(args)
    finished = pipeline.run(
        folder.samples,
        policy=policy,
        tracker=tracker,
        sampling=sampling,
        batch_size=asking["batch_size"],
        in_flight=asking["in_flight"],
        seed=args.seed,
        done=frozenset(folder.done),
        reading=args.reading,
        then=folder.write,
    )
    with contextlib.closing(finished):
        for one in finished:
            yield prediction_record(one.prediction)


def _predict_on_workers(
    args: argparse.Namespace, dataset: datasets.Dataset, sampling: pipeline.Sampling, folder: RunFolder
) -> Predictions:
    """Predicts on Ray actors, in any order."""
    from inference import distributed  # seconds: Ray

    finished = distributed.predict(
        args,
        dataset,
        folder.samples,
        done=frozenset(folder.done),
        describe=lambda policy: folder.describe(options.public(policy)),
    )
    with contextlib.closing(finished):
        for packed in finished:
            yield folder.keep(packed).prediction


if __name__ == "__main__":
    sys.exit(run_command(main))
