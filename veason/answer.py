"""Reads and writes the reply format: `parse_reply` takes anything a model can emit, `format_reply` writes a good reply.

``<think>…</think><answer>{"keyframe_timestamp": 12, "bbox_2d_list": [[x1, y1, x2, y2], …]}</answer>``

A bad reply is data: parsing never raises, takes time linear in the text, keeps what is usable and names the first thing
that is wrong. The reward grades by `parse_reply` alone; inference also has `read_reply`, which takes a reply that a
person would still understand and lists the faults that it forgave.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from veason.types import Answer, Box, Clip, Reply

KEYFRAME, BOXES = "keyframe_timestamp", "bbox_2d_list"

STAGES = ("text", "answer_block", "json", "object", "keyframe", "box_list", "boxes")
"""The steps of reading a reply, in order."""

PROBLEMS = {
    "no_answer": "there is no <answer> block",
    "answer_not_closed": "the <answer> block is never closed: the reply was probably cut off",
    "answer_too_long": "the answer block is longer than any answer",
    "too_deep": "the answer nests brackets deeper than any answer",
    "not_json": "the answer block is not JSON",
    "not_object": "the answer is JSON but not an object",
    "repeated_key": "the answer gives a key twice",
    "no_keyframe": f"the answer has no {KEYFRAME}",
    "bad_keyframe": f"{KEYFRAME} is not an int",
    "no_box_list": f"the answer has no {BOXES}",
    "bad_box_list": f"{BOXES} is not a list",
    "no_boxes": f"{BOXES} is empty: the answer says there is no target",
    "bad_boxes": "an entry of the box list is not a box",
    "not_well_formed": "the reply is not exactly a think block and an answer block",
    "keyframe_not_shown": "the keyframe is none of the shown frames",
}
"""Every problem a reply can have, by code, least far first."""

BLOCKS = ("after_thinking", "first", "braces")
"""The values of `Rules.block`."""

MAX_ANSWER_CHARS = 1 << 20
MAX_DEPTH = 32
MAX_COORDINATE = 1e6

_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)  # a string, closed or not, is one token
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_THINK, _THOUGHT = re.compile(r"<think(?:ing)?>"), re.compile(r"</think(?:ing)?>")
_OBJECT = re.compile(r"\{(?=\s{0,100}[\"'])")
_LOOSE = re.compile(  # one token of almost-JSON: a text, a bracket or comma, or anything between them
    r""""(?:[^"\\]|\\.)*+(?:"|\\?\Z)|'(?:[^'\\]|\\.)*+(?:'|\\?\Z)|[\[\]{},]|[^"'\[\]{},]+""", re.DOTALL
)
_KEYFRAME_TEXT = re.compile(r"\(?\s{0,9}([0-9]{1,9})(?:\.0{1,9})?\s{0,9}(?:s|sec|seconds)?\s{0,9}\)?")
_NUMBER_TEXT = re.compile(r"\s{0,9}[+-]?[0-9]{1,9}(?:\.[0-9]{1,20})?\s{0,9}")
_CANDIDATES = 8
"""Opening braces of a reply at which an answer object is looked for."""
_DENIAL = re.compile(
    r"""\bno\s{1,9}such\b
    |\bno\s{1,9}(?!other\b)(?:\w{1,20}\s{1,9}){0,2}(?:target|object|instance|match)(?:e?s)?\b
    |\b(?:is|are|was|were)(?:\s{1,9}not|n['’]t)\s{1,9}(?:\w{1,20}\s{1,9}){0,2}
        in\s{1,9}(?:(?:the|this)\s{1,9}(?:video|clip|scene|footage)|any\s{1,9}(?:of\s{1,9}the\s{1,9})?frames?)\b
    |\b(?:do|does|did)(?:\s{1,9}not|n['’]t)\s{1,9}(?:exist\b|(?:appear|occur)\s{1,9}in\s{1,9}(?:the|this)\s{1,9}(?:video|clip|scene)\b)
    |\b(?:video|clip|scene|footage)\s{1,9}(?:does|did)(?:\s{1,9}not|n['’]t)\s{1,9}(?:contain|show|include|have)\b
    |\b(?:can\s{0,9}not|can['’]t|could\s{1,9}not|couldn['’]t|unable\s{1,9}to)\s{1,9}(?:find|locate|identify|detect)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words around an answer object that deny the target: the object is then an example or a guess, and no answer."""
_BETWEEN = re.compile(r"</think>\s*<answer>")
_BRACES_OPEN, _BRACES_CLOSE = re.compile(r"<answer>\s*(?=\{)"), re.compile(r"\}(?=\s*</answer>)")


READINGS = ("lenient", "strict")
"""The ways in which `read_reply` reads."""

REPAIRS = {
    "upper_tags": "the tags are not in lower case",
    "no_tags": "the answer object stands without answer tags",
    "fence": "a code fence or other text stands around the object",
    "single_quotes": "texts are in single quotes",
    "trailing_comma": "a comma stands before a closing bracket",
    "keyframe_form": 'the keyframe is a text, or a whole number with a fraction, such as 4.0 or "4s"',
    "number_texts": "coordinates are texts",
    "box_objects": "boxes are objects with bbox_2d, or with x1, y1, x2 and y2",
    "flat_box": "one box stands where a list of boxes belongs",
}
"""The faults that a lenient reading forgives, by code; every other one stays a fault."""


@dataclass(frozen=True)
class Rules:
    """The rules for numbers, boxes and objects, in which the two presets differ."""

    allow_bool: bool
    """Take true for a number, as the released reward does: it is an int to Python's JSON."""
    allow_nonfinite: bool
    """Take NaN, infinities and values beyond `MAX_COORDINATE`."""
    allow_inverted: bool
    """Take boxes with x2 < x1 or y2 < y1."""
    allow_repeated_keys: bool
    """Take the last of two values."""
    loose_keyframe: bool = False
    """Count a keyframe by itself: without a box list it is an answer without boxes, and one such as 12.5 or "12",
    though a `bad_keyframe`, becomes the answer's through int()."""
    block: str = "after_thinking"
    """The answer block to read: the first ``after_thinking``, the ``first`` of the text even if it was opened while
    thinking, or the first that opens with a brace, up to a closing brace before a closing tag (``braces``)."""
    max_depth: int = MAX_DEPTH
    """The deepest nesting of brackets that is read."""


STRICT = Rules(allow_bool=False, allow_nonfinite=False, allow_inverted=False, allow_repeated_keys=False)
RELEASED = Rules(
    allow_bool=True,
    allow_nonfinite=True,
    allow_inverted=True,
    allow_repeated_keys=True,
    loose_keyframe=True,
    block="first",
    max_depth=500,  # about what Python's JSON reads before it gives up
)


def format_reply(thinking: str, answer: Answer) -> str:
    """The well-formed reply with this thinking and answer; coordinates to two decimals, whole ones without any."""
    if re.search(r"</?(think|answer)>", thinking):
        raise ValueError(f"the thinking holds a tag of the reply format: {thinking[:80]!r}")
    rounded = [[round(float(value), 2) for value in box] for box in answer.boxes]
    boxes = [[int(value) if value.is_integer() else value for value in box] for box in rounded]
    return f"<think>{thinking}</think><answer>{json.dumps({KEYFRAME: answer.keyframe, BOXES: boxes})}</answer>"


def parse_reply(text: str, *, rules: Rules = STRICT) -> Reply:
    """Read a reply: think block, answer, first problem. Never raises on any text."""
    # a think block, white space, an answer block, and nothing else: as a full match of the released pattern decides
    ends = text.startswith("<think>") and text.endswith("</answer>")
    well_formed = ends and _BETWEEN.search(text, len("<think>")) is not None
    reply = Reply(text=text, thinking=_thinking(text), well_formed=well_formed)
    block, problem = _answer_block(text, rules.block)
    if problem:
        return _stop(reply, problem)
    reply = replace(reply, reached="answer_block")
    value, problem, detail = _load(block, rules)
    if problem:
        return _stop(reply, problem, detail)
    reply = _read_answer(replace(reply, reached="json"), value, rules)
    if reply.problem is None and not reply.well_formed:
        return _stop(reply, "not_well_formed")
    return reply


def read_reply(text: str, *, reading: str = "lenient") -> Reply:
    """Read a reply for inference: as `parse_reply` where that finds an answer in whole, else forgiving `REPAIRS`.

    The reply's `repairs` list the forgiven faults; `problem` and `detail` stay those of the strict reading. A reply
    that the strict reading takes, an empty box list among them, is never read in another way.
    """
    strict = parse_reply(text)
    if reading == "strict" or strict.problem in (None, "not_well_formed", "no_boxes", "repeated_key"):
        return strict
    repairs: set[str] = set()
    value = _loose_object(text, repairs)
    if value is None or value.repeated:
        return strict
    keyframe, entries = _loose_answer(value, repairs)
    boxes = tuple(box for entry in entries if (box := _box(entry, STRICT)) is not None)
    if keyframe is None or len(boxes) <= (len(strict.answer.boxes) if strict.answer else 0):
        return strict
    thinking = strict.thinking if strict.thinking is not None else _thinking(_lower_tags(text))
    answer = Answer(keyframe=keyframe, boxes=boxes)
    in_order = tuple(name for name in REPAIRS if name in repairs)
    return replace(strict, thinking=thinking, answer=answer, entries=len(entries), repairs=in_order)


def _lower_tags(text: str) -> str:
    return _TAG.sub(lambda tag: tag.group().lower(), text)


def _loose_object(text: str, repairs: set[str]) -> _Object | None:
    """The object with a keyframe in the answer block, or after the thinking where there is no such block.

    None where several differ, for one of them may be a draft; thinking that never ends is not searched for the same
    reason. None, too, where the words around the object deny the target (`_DENIAL`). Adds to `repairs`.
    """
    lowered = _lower_tags(text)
    block, problem = _answer_block(lowered, "after_thinking")
    if problem == "no_answer":
        thought = 0
        for tag in _THOUGHT.finditer(lowered):
            thought = tag.end()
        if thought == 0 and _THINK.search(lowered):
            return None
        block = lowered[thought:]
    elif problem is not None:
        return None
    only: _Object | None = None
    only_end = 0
    for opened in itertools.islice(_OBJECT.finditer(block[:MAX_ANSWER_CHARS]), _CANDIDATES):
        if opened.start() < only_end:
            continue  # inside the object that was found
        found: set[str] = set()
        mended, end = _mended(block, opened.start(), found)
        value, problem_here, _ = _load(mended, STRICT) if mended else (None, "not_json", "")
        if problem_here is not None or not isinstance(value, _Object) or KEYFRAME not in value:
            continue
        if only is not None and value != only:
            return None
        if only is None:
            only, only_end = value, end
            before, after = block[: opened.start()], block[end:MAX_ANSWER_CHARS]
            if _DENIAL.search(before) or _DENIAL.search(after):
                return None
            found |= {"no_tags"} if problem == "no_answer" else set()
            found |= {"fence"} if before.strip() or block[end:].strip() else set()
            found |= {"upper_tags"} if lowered != text else set()
            repairs |= found
    return only


def _mended(block: str, start: int, repairs: set[str]) -> tuple[str, int]:
    """(the object that opens at `start` as JSON, where it ends); an empty text if it never closes or is too deep."""
    parts: list[str] = []
    depth = 0
    for token in _LOOSE.finditer(block, start, min(len(block), start + MAX_ANSWER_CHARS)):
        piece = token.group()
        if piece[0] in "]}" and parts:
            last = len(parts) - 1 - (not parts[-1].strip())  # white space may stand between
            if parts[last] == ",":
                parts[last] = ""
                repairs.add("trailing_comma")
        elif piece[0] == "'":
            piece = json.dumps(re.sub(r"\\(['\"\\])", r"\1", piece[1:-1]), ensure_ascii=False)
            repairs.add("single_quotes")
        parts.append(piece)
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece[0], 0)
        if depth > MAX_DEPTH:
            break
        if depth == 0:
            return "".join(parts), token.end()
    return "", len(block)


def _loose_answer(value: _Object, repairs: set[str]) -> tuple[int | None, list[Any]]:
    """(keyframe, entries of the box list) of an answer object, both as forgiving as `REPAIRS`.

    A keyframe is 4, 4.0, "4", "4.0", "4s" or "(4s)"; None if it is none of these. Entries that are objects or hold
    texts become lists of numbers; an entry that is neither stays as it is.
    """
    said, keyframe = value.get(KEYFRAME), None
    if isinstance(said, int) and not isinstance(said, bool):
        keyframe = said
    elif isinstance(said, float) and said.is_integer() and abs(said) < 1e9:
        keyframe = int(said)
        repairs.add("keyframe_form")
    elif isinstance(said, str) and (match := _KEYFRAME_TEXT.fullmatch(said.strip())):
        keyframe = int(match.group(1))
        repairs.add("keyframe_form")

    listed = value.get(BOXES)
    flat = isinstance(listed, list) and len(listed) == 4 and not any(isinstance(e, (list, dict)) for e in listed)
    if flat or isinstance(listed, dict):
        listed = [listed]
        repairs.add("flat_box")
    entries: list[Any] = []
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            sides: Any = [entry.get(name) for name in ("x1", "y1", "x2", "y2")]
            corners = entry.get("bbox_2d")
            sides = corners if None in sides else sides
            entry = sides if corners in (None, sides) else None  # one that gives two different boxes is none
            repairs.add("box_objects")
        if isinstance(entry, list) and any(isinstance(side, str) for side in entry):
            entry = [float(v) if isinstance(v, str) and _NUMBER_TEXT.fullmatch(v) else v for v in entry]
            repairs.add("number_texts")
        entries.append(entry)
    return keyframe, entries


def place(reply: Reply, clip: Clip) -> Reply:
    """The reply as an answer about `clip`: a keyframe that was not shown makes it unusable, with the reason."""
    if reply.answer is None or clip.position(reply.answer.keyframe) is not None:
        return reply
    shown = ", ".join(map(str, clip.frame_ids))
    detail = f"keyframe {reply.answer.keyframe} is none of the shown frames ({shown})"
    return _stop(replace(reply, answer=None), "keyframe_not_shown", detail)


def _stop(reply: Reply, problem: str, detail: str = "") -> Reply:
    return replace(reply, problem=problem, detail=detail or PROBLEMS[problem])


def _thinking(text: str) -> str | None:
    start = text.find("<think>")
    end = text.find("</think>", start)
    return text[start + len("<think>") : end].strip() if 0 <= start < end else None


def _answer_block(text: str, which: str) -> tuple[str, str | None]:
    """(inside of the answer block that `Rules.block` names, problem); the first one where none comes after thinking."""
    if which == "braces":  # whatever tags the braces hold
        opened = _BRACES_OPEN.search(text)
        closed = _BRACES_CLOSE.search(text, opened.end()) if opened else None
        start, end = opened.end() if opened else -1, closed.end() if closed else -1
    else:
        thought = text.find("</think>") if which == "after_thinking" else 0
        start = text.find("<answer>", max(thought, 0))
        if start < 0:
            start = text.find("<answer>")
        start += len("<answer>") if start >= 0 else 0
        end = text.find("</answer>", start)
    if start < 0:
        return "", "no_answer"
    if end < 0:
        return "", "answer_not_closed"
    if end - start > MAX_ANSWER_CHARS:
        return "", "answer_too_long"
    return text[start:end] if which == "after_thinking" else text[start:end].strip(), None


class _Object(dict[str, Any]):
    """A JSON object; `repeated` is the key of an answer that it was given twice, if there is one."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: str | None = None
        if len(self) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated = next((key for key in (KEYFRAME, BOXES) if keys.count(key) > 1), None)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # int() of a million digits is quadratic


def _load(block: str, rules: Rules) -> tuple[Any, str | None, str]:
    """(value, problem, detail) of the JSON in an answer block."""
    depth = 0
    for token in _BRACKET.finditer(block):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group()[0], 0)
        if depth > rules.max_depth:
            return None, "too_deep", ""
    try:
        parse_int = int if rules.allow_nonfinite else _integer
        return json.loads(block, object_pairs_hook=_Object, parse_int=parse_int), None, ""
    except ValueError as error:  # JSONDecodeError, or an int of more digits than int() takes
        return None, "not_json", f"the answer block is not JSON: {error}"


def _read_answer(reply: Reply, value: Any, rules: Rules) -> Reply:
    if not isinstance(value, _Object):
        return _stop(reply, "not_object", f"the answer is a JSON {type(value).__name__}, not an object")
    reply = replace(reply, reached="object")
    if value.repeated and not rules.allow_repeated_keys:
        return _stop(reply, "repeated_key", f"the answer gives {value.repeated} twice")
    if KEYFRAME not in value:
        return _stop(reply, "no_keyframe")
    keyframe = value[KEYFRAME]
    if isinstance(keyframe, int) and (rules.allow_bool or not isinstance(keyframe, bool)):
        return _read_list(replace(reply, reached="keyframe"), int(keyframe), value, rules)
    reply = _stop(reply, "bad_keyframe", f"{KEYFRAME} is {_shown(keyframe)}, not an int")
    try:
        converted = int(keyframe) if rules.loose_keyframe else None
    except (TypeError, ValueError, OverflowError):
        converted = None
    if converted is None:
        return reply
    read = _read_list(reply, converted, value, rules)
    return replace(reply, answer=read.answer, entries=read.entries)


def _shown(value: object) -> str:
    return repr(str(value)[:40])


def _read_list(reply: Reply, keyframe: int, value: _Object, rules: Rules) -> Reply:
    entries = value.get(BOXES)
    if not isinstance(entries, list):
        if rules.loose_keyframe:
            reply = replace(reply, answer=Answer(keyframe=keyframe, boxes=()))
        if BOXES not in value:
            return _stop(reply, "no_box_list")
        return _stop(reply, "bad_box_list", f"{BOXES} is {_shown(entries)}, not a list")
    boxes = tuple(box for entry in entries if (box := _box(entry, rules)) is not None)
    answer = Answer(keyframe=keyframe, boxes=boxes)
    reply = replace(reply, reached="box_list", entries=len(entries), answer=answer)
    if not entries:
        return _stop(reply, "no_boxes")
    if len(boxes) < len(entries):
        return _stop(reply, "bad_boxes", f"{len(entries) - len(boxes)} of {len(entries)} entries are not boxes")
    return replace(reply, reached="boxes")


def _box(entry: Any, rules: Rules) -> Box | None:
    """The entry as a box; None if it is none by the rules."""
    if not isinstance(entry, list) or len(entry) != 4:
        return None
    sides: list[float] = []
    for value in entry:
        if not isinstance(value, (int, float)) or (isinstance(value, bool) and not rules.allow_bool):
            return None
        if not rules.allow_nonfinite and not (math.isfinite(value) and abs(value) <= MAX_COORDINATE):
            return None
        try:
            sides.append(value if isinstance(value, bool) else float(value))  # True stays what it is where it is taken
        except OverflowError:
            sides.append(math.nan)  # an int beyond all floats
    x1, y1, x2, y2 = sides
    if not rules.allow_inverted and (x2 < x1 or y2 < y1):
        return None
    return (x1, y1, x2, y2)
