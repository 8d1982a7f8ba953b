"""Loads a pretrained model from disk, after checking from its small files and headers that the checkpoint is whole.

The Hugging Face classes are used as they are, with safetensors only and no code from the checkpoint. transformers gives
random values to what a checkpoint lacks and goes on; here that is a problem, reported in one line before any weight is
loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

from verl.engines.base import EngineError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
HEAD = "lm_head.weight"
SMALL = ("*.json", "*.jinja", "*.txt", "*.model")
"""Names of a checkpoint's files beside its weights."""

_NEEDED = {
    "config.json": ("config.json",),
    "a tokenizer (tokenizer.json)": ("tokenizer.json", "vocab.json", "tokenizer.model"),
    "the tokenizer's settings (tokenizer_config.json)": ("tokenizer_config.json",),
    "an image processor (preprocessor_config.json or processor_config.json)": (
        "preprocessor_config.json",
        "processor_config.json",
    ),
}
"""The files that a folder needs beside its weights; of each group, any one name is enough."""


def load_base(path: str | Path, *, dtype: torch.dtype = torch.float32, empty: bool = False) -> PreTrainedModel:
    """The model of a checkpoint folder (or hub name), on the CPU; with `empty` its shapes alone, on the meta device.

    Raises EngineError, before anything is loaded and with `empty` too, for a checkpoint that is not whole.
    """
    check(path)
    how = {"dtype": dtype, "attn_implementation": "sdpa", "trust_remote_code": False}
    if empty:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            return AutoModelForImageTextToText.from_config(config, **how)
    return AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **how)


def load_config(path: str | Path) -> Any:
    """The Hugging Face configuration of a checkpoint. Raises EngineError if the checkpoint is not whole."""
    check(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def load_processor(path: str | Path) -> Any:
    """Tokenizer, image processor and chat template of a checkpoint folder."""
    return AutoProcessor.from_pretrained(path, trust_remote_code=False)


def check(path: str | Path) -> None:
    """Raise EngineError with the `problem` of a checkpoint, if it has one."""
    if found := problem(path):
        raise EngineError(found)


def problem(source: str | Path) -> str | None:
    """Returns the reason why a checkpoint (a folder or a hub name) cannot be used as a vision-language model, in one
    line that begins with its name and ends with the remedy; None if it can.

    The tensors that `from_pretrained` would have to initialise, drop or reshape are counted by its own rules for names,
    so the names of the published checkpoints and tied heads are accepted.
    """
    try:
        folder = fetch(source)
    except (OSError, ValueError, HFValidationError) as error:
        return f"{source}: no such folder, and no model of this name could be fetched: {_line(error)}"
    wrong = _problem_of_files(folder) or _problem_of_weights(folder) or _problem_of_processor(folder)
    return None if wrong is None else f"{source}: {wrong}"


def fetch(source: str | Path) -> Path:
    """The folder of a checkpoint: itself, or that of a hub name in the local cache."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise ValueError("it is a file, and a checkpoint is a folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith("."):
        raise ValueError("is the path right?")
    return Path(snapshot_download(str(source), allow_patterns=[*SMALL, "*.safetensors"]))


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of all tensors in some safetensors files, from their headers. Raises ValueError that names a file
    that is damaged, cut off, or something else."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        if wrong := _problem_of_file(path):
            raise ValueError(f"{path.name} is {wrong}")
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged or cut off ({_line(error)}); fetch it again") from None
    return found


def misfits(missing: Sequence[str], unexpected: Sequence[str], reshaped: Sequence[str]) -> str | None:
    """Counts of tensors that do not fit, with the first names of each kind; None if all do."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return ", ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names) or None


def merge_command(adapter: Path) -> str:
    """The command that makes a model of an adapter folder."""
    try:
        base = json.loads((adapter / ADAPTER).read_bytes()).get("base_model_name_or_path") or "BASE"
    except (OSError, ValueError, AttributeError):
        base = "BASE"
    return (
        f"llamafactory-cli export --model_name_or_path {base} --adapter_name_or_path {adapter} --template qwen2_vl "
        "--export_dir MERGED (one that verl.export wrote with --no-merge: export again without it)"
    )


# ------------------------------------------------------------------------------------------------ checks


def _problem_of_files(folder: Path) -> str | None:
    """A file that is not itself, or one that is missing."""
    if (folder / ADAPTER).exists():
        return f"it is an adapter, not a model; merge it into its base first: {merge_command(folder)}"
    for path in sorted(path for pattern in SMALL for path in folder.glob(pattern)):
        if wrong := _problem_of_file(path):
            return f"{path.name} is {wrong}"
    lacking = [what for what, names in _NEEDED.items() if not any((folder / name).exists() for name in names)]
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        lacking.append(f"weights ({WEIGHTS} or {INDEX}; nothing else is loaded)")
    if not lacking:
        own = [folder / name for name in ("chat_template.jinja", "chat_template.json")]
        inside = [folder / name for name in ("processor_config.json", "tokenizer_config.json")]
        templates = [path for path in inside if path.exists() and "chat_template" in path.read_text(errors="replace")]
        if not templates and not any(path.exists() for path in own):
            lacking.append("a chat template (chat_template.jinja)")
    if lacking:
        return f"it lacks {', '.join(lacking)}; copy what is missing from the base model, or fetch the checkpoint again"
    return None


def _problem_of_file(path: Path) -> str | None:
    """Returns what a damaged or foreign file of a checkpoint is, with the remedy; None if the file looks right."""
    if not path.is_file():
        return "no regular file; fetch it again"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps a log-in page; download it again"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            return f"not valid JSON ({_line(error)}); fetch it again"
    return None


def _problem_of_weights(folder: Path) -> str | None:
    """Weights that are damaged, or do not fit ``config.json`` by the rules of `from_pretrained`."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its config.json cannot be used: {_line(error)}"
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return (
            f"its config.json describes no vision-language model but {config.model_type!r}; give one that takes images"
        )
    try:
        files = _weight_files(folder)
        shapes = tensor_shapes(files)
    except ValueError as error:
        return str(error)
    if getattr(config, "quantization_config", None) is not None:
        return None  # names and shapes are its quantiser's
    model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]  # typed for tuples of classes too
    placed = dict(shapes)
    embeddings = next((name for name in shapes if name.endswith("embed_tokens.weight")), None)
    if HEAD in shapes and embeddings:
        with torch.device("meta"):
            tied = HEAD in model_class(config).all_tied_weights_keys
        if tied and not torch.equal(_read_tensor(files, HEAD), _read_tensor(files, embeddings)):
            return f"its {HEAD} and {embeddings} differ, but config.json ties them; correct tie_word_embeddings"
        if tied:  # one of the two says all, and two would be compared, which shapes alone cannot be
            del placed[HEAD]
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # without transformers' bar and its table of what does not fit
    logging.disable_progress_bar()
    try:
        _, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: torch.empty(shape, device="meta") for name, shape in placed.items()},
            device_map="meta",
            ignore_mismatched_sizes=True,  # they are reported
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    reshaped = [f"{name} is {tuple(has)}, not {tuple(wants)}" for name, has, wants in report["mismatched_keys"]]
    found = misfits(sorted(report["missing_keys"]), sorted(report["unexpected_keys"]), sorted(reshaped))
    return found and f"its {len(shapes)} weights do not fit its config.json: {found}; fetch or export it again"


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights, as transformers chooses them. ValueError for an index that cannot be followed."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of weights ({_line(error)}); fetch it again") from None
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{len(absent)} of {len(names)} weight files are missing ({_first(absent)}); fetch them again")
    return [folder / name for name in names]


def _read_tensor(files: Sequence[Path], name: str) -> torch.Tensor:
    for path in files:
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 - it is no dict
                return file.get_tensor(name)
    raise AssertionError(f"{name} was in a header")


def _problem_of_processor(folder: Path) -> str | None:
    """A tokenizer or processor that cannot be loaded, or that belongs to another model."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        tokenizer = processor.tokenizer
    except Exception as error:  # the tokenizers library raises this very type for a damaged file
        return f"its tokenizer and processor cannot be loaded: {type(error).__name__}: {_line(error)}; fetch them again"
    if not getattr(processor, "chat_template", None):
        return "its processor has no chat template; copy chat_template.jinja from the base model"
    if tokenizer.eos_token_id is None:
        return "its tokenizer has no end token; copy tokenizer_config.json from the base model"
    ours, theirs = getattr(config, "image_token_id", None), getattr(processor, "image_token_id", None)
    if ours is not None and theirs is not None and ours != theirs:
        return f"its tokenizer is another model's: images are token {theirs} there and {ours} in config.json"
    rows = config.get_text_config().vocab_size
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        return f"its tokenizer is another model's: it has token {last}, the model {rows} tokens"
    return None


def _first(names: Sequence[str], most: int = 2) -> str:
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


def _line(error: Any) -> str:
    """An exception on one line, not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:199]}…"
