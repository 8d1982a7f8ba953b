"""The reply parser: worked examples, the inverse pair, a hundred thousand generated replies, and hostile giants."""

import math
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veason.answer import PROBLEMS, RELEASED, REPAIRS, STAGES, STRICT, format_reply, parse_reply, place, read_reply
from veason.types import Answer, Clip

GOOD = (
    "<think>it jumps</think> "
    '<answer>{"keyframe_timestamp": 12, "bbox_2d_list": [[1, 2, 3, 4], [5.5, 6, 7, 8]]}</answer>'
)


def answer(inside: str) -> str:
    return f"<think>t</think><answer>{inside}</answer>"


def boxes(inside: str) -> str:
    return answer(f'{{"keyframe_timestamp": 3, "bbox_2d_list": {inside}}}')


def test_a_good_reply():
    reply = parse_reply(GOOD)
    assert reply.thinking == "it jumps"
    assert reply.answer == Answer(keyframe=12, boxes=((1, 2, 3, 4), (5.5, 6, 7, 8)))
    assert (reply.entries, reply.well_formed, reply.reached, reply.problem) == (2, True, "boxes", None)
    assert reply.usable


@pytest.mark.parametrize(
    ("text", "reached", "problem"),
    [
        ("", "text", "no_answer"),
        ("<think>hmm</think>", "text", "no_answer"),
        ("<think>t</think><answer>{", "text", "answer_not_closed"),
        (answer(""), "answer_block", "not_json"),
        (answer("{'keyframe_timestamp': 3}"), "answer_block", "not_json"),
        (answer("<answer>{}"), "answer_block", "not_json"),
        (answer("[" * 33 + "]" * 33), "answer_block", "too_deep"),
        (answer("[1, 2]"), "json", "not_object"),
        (answer("{}"), "object", "no_keyframe"),
        (answer('{"keyframe_timestamp": "3"}'), "object", "bad_keyframe"),
        (answer('{"keyframe_timestamp": 3.0}'), "object", "bad_keyframe"),
        (answer('{"keyframe_timestamp": true}'), "object", "bad_keyframe"),
        (answer('{"keyframe_timestamp": 1e400}'), "object", "bad_keyframe"),
        (answer('{"keyframe_timestamp": %s}' % ("9" * 5000)), "object", "bad_keyframe"),
        (answer('{"keyframe_timestamp": 3}'), "keyframe", "no_box_list"),
        (answer('{"keyframe_timestamp": 3, "bbox_2d_list": {}}'), "keyframe", "bad_box_list"),
        (boxes("[]"), "box_list", "no_boxes"),
        (boxes("[[1,2,3]]"), "box_list", "bad_boxes"),
        (boxes("[[1,2,3,4,5]]"), "box_list", "bad_boxes"),
        (boxes('[[1,2,3,"4"]]'), "box_list", "bad_boxes"),
        (boxes("[[1,2,3,NaN]]"), "box_list", "bad_boxes"),
        (boxes("[[1,2,3,1e400]]"), "box_list", "bad_boxes"),
        (boxes("[[1,2,3,1e300]]"), "box_list", "bad_boxes"),
        (boxes("[[1,2,true,4]]"), "box_list", "bad_boxes"),
        (boxes("[[5,2,3,4]]"), "box_list", "bad_boxes"),
        (boxes("[[1,5,3,4]]"), "box_list", "bad_boxes"),
        (answer('{"keyframe_timestamp": 3, "keyframe_timestamp": 4, "bbox_2d_list": []}'), "object", "repeated_key"),
        (boxes("[[1,2,3,4]]") + "\n", "boxes", "not_well_formed"),
        (boxes("[[1,2,3,4]]").replace("<think>t</think>", ""), "boxes", "not_well_formed"),
    ],
)
def test_how_far_a_bad_reply_gets(text, reached, problem):
    reply = parse_reply(text)
    assert (reply.reached, reply.problem) == (reached, problem)
    assert reply.detail


def test_a_bad_entry_leaves_the_good_ones():
    reply = parse_reply(boxes("[[1,2,3,4], [1,2,3], null]"))
    assert reply.answer == Answer(keyframe=3, boxes=((1, 2, 3, 4),))
    assert (reply.entries, reply.detail) == (3, "2 of 3 entries are not boxes")
    assert reply.usable


def test_an_empty_list_says_that_there_is_no_target():
    reply = parse_reply(boxes("[]"))
    assert reply.answer == Answer(keyframe=3, boxes=())
    assert not reply.usable


def test_the_answer_comes_after_the_thinking():
    """A model that talks of its tags while thinking still has its answer read."""
    reply = parse_reply(
        "<think>then I open <answer> and stop</think>" + boxes("[[1,2,3,4]]")[len("<think>t</think>") :]
    )
    assert reply.answer == Answer(keyframe=3, boxes=((1, 2, 3, 4),))


def test_a_degenerate_box_of_one_pixel_is_a_box():
    assert parse_reply(boxes("[[3,4,3,4]]")).problem is None


def test_the_released_rules_take_what_strict_refuses():
    for entry in ("[5,2,3,4]", "[1,2,true,4]", "[1,2,3,NaN]", "[1,2,3,1e400]"):
        assert parse_reply(boxes(f"[{entry}]"), rules=STRICT).problem == "bad_boxes"
        assert parse_reply(boxes(f"[{entry}]"), rules=RELEASED).problem is None
    twice = answer('{"keyframe_timestamp": 3, "keyframe_timestamp": 4, "bbox_2d_list": [[1,2,3,4]]}')
    assert parse_reply(twice, rules=RELEASED).answer.keyframe == 4  # the last wins
    assert parse_reply(answer('{"keyframe_timestamp": true, "bbox_2d_list": []}'), rules=RELEASED).answer.keyframe == 1


def test_a_keyframe_that_was_not_shown_is_no_answer():
    clip = Clip(frame_ids=(0, 12, 24), size=(56, 56))
    assert place(parse_reply(GOOD), clip).usable
    reply = place(parse_reply(GOOD.replace("12", "13")), clip)
    assert (reply.answer, reply.problem) == (None, "keyframe_not_shown")
    assert reply.detail == "keyframe 13 is none of the shown frames (0, 12, 24)"


COORDINATE = st.floats(0, 2000, allow_nan=False).map(lambda value: round(value, 2))
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(
    st.integers(0, 10**6),
    st.lists(BOX, min_size=1, max_size=5),
    st.text(alphabet=st.characters(exclude_characters="<")),
)
def test_parse_is_the_inverse_of_format(keyframe, found, thinking):
    said = Answer(keyframe=keyframe, boxes=tuple(found))
    reply = parse_reply(format_reply(thinking, said))
    assert reply.answer == said
    assert (reply.problem, reply.thinking) == (None, thinking.strip())


def test_format_writes_two_decimals_and_whole_numbers_bare():
    assert format_reply("a", Answer(3, ((1.0, 2.126, 3.5, 4),))) == (
        '<think>a</think><answer>{"keyframe_timestamp": 3, "bbox_2d_list": [[1, 2.13, 3.5, 4]]}</answer>'
    )
    with pytest.raises(ValueError, match="holds a tag"):
        format_reply("a</think>", Answer(3, ()))


MEMBERS = [
    '"keyframe_timestamp": 4', '"keyframe_timestamp": 4', '"keyframe_timestamp": 4.5', '"keyframe_timestamp": null',
    '"bbox_2d_list": [[1, 2, 3, 4]]', '"bbox_2d_list": []', '"bbox_2d_list": 3', '"bbox_2d_list": [[NaN, 1, 2, 3]]',
    '"bbox_2d_list": [[1, 2, 3, 4], [9, 2, 3, 4]]', '"other": {"a": [1e400, -0.0]}',
]  # fmt: skip
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "{", "}", "[", "]", ",", ":", '"', "\\", " ", "\n", "\x00",
    '"keyframe_timestamp"', '"bbox_2d_list"', "[[1,2,3,4]]", "NaN", "Infinity", "-Infinity", "1e400", "-1e400",
    "\ud800", "1" * 400,
    "0", "-3", "2.5", "true", "null", "<think><think>", "<answer><answer>", "<b>bold</b>", "<script>alert(1)</script>",
    "[" * 40, "{}" * 9, '{"a":' * 12, "```json", "// no", "\u2028", *MEMBERS,
]  # fmt: skip


def generated_reply(rng: Random) -> str:
    """Shuffled pieces, an object of shuffled members, or a good reply with a few characters changed."""
    kind = rng.random()
    if kind < 0.4:
        return "".join(rng.choices(PIECES, k=rng.randrange(24)))
    if kind < 0.7:
        return answer("{" + ", ".join(rng.choices(MEMBERS, k=rng.randrange(4))) + "}")
    text = list(GOOD)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(3)] = rng.choice(PIECES)
    return "".join(text)


def test_a_hundred_thousand_replies_are_graded_without_an_exception():
    rng, seen = Random(0), set()
    for i in range(100_000):
        text = generated_reply(rng)
        reply = parse_reply(text, rules=STRICT if i % 2 else RELEASED)
        seen.add(reply.problem)
        assert reply.reached in STAGES
        assert reply.problem is None or (reply.problem in PROBLEMS and reply.detail)
        if reply.problem is None:
            assert reply.well_formed
            assert reply.usable
            assert len(reply.answer.boxes) == reply.entries
        if reply.answer is not None and i % 2:
            assert all(math.isfinite(value) for box in reply.answer.boxes for value in box)
    reached_only_elsewhere = {"answer_too_long", "keyframe_not_shown"}
    assert seen == set(PROBLEMS) - reached_only_elsewhere | {None}  # the generator finds every branch


INSIDE = '{"keyframe_timestamp": 4, "bbox_2d_list": [[10, 20, 100, 200]]}'
OTHER = '{"keyframe_timestamp": 5, "bbox_2d_list": [[1, 2, 3, 4]]}'


def listed(inside: str, keyframe: str = "4") -> str:
    return answer(f'{{"keyframe_timestamp": {keyframe}, "bbox_2d_list": {inside}}}')


LOOSE = [
    (answer(f"\n```json\n{INSIDE}\n```\n"), ("fence",)),
    (f"```json\n{INSIDE}\n```", ("no_tags", "fence")),
    (f"<think>t</think>{INSIDE}", ("no_tags",)),
    (f"<thinking>t</thinking>{INSIDE}", ("no_tags",)),
    (f"<think>t</think>{INSIDE}, that is {INSIDE.replace(' ', '')}", ("no_tags", "fence")),
    (f"<think>t</think>The answer is {{it}}: {INSIDE}", ("no_tags", "fence")),
    (listed('[{"bbox_2d": [10, 20, 100, 200], "label": "cat"}]'), ("box_objects",)),
    (listed('[{"x1": 10, "y1": 20, "x2": 100, "y2": 200}]'), ("box_objects",)),
    (listed('{"bbox_2d": [10, 20, 100, 200]}'), ("box_objects", "flat_box")),
    (listed('[["10", "20", " 100 ", "200.0"]]'), ("number_texts",)),
    (listed("[10, 20, 100, 200]"), ("flat_box",)),
    (listed("[[10, 20, 100, 200]]", '"4"'), ("keyframe_form",)),
    (listed("[[10, 20, 100, 200]]", '"(4s)"'), ("keyframe_form",)),
    (listed("[[10, 20, 100, 200]]", '"4 seconds"'), ("keyframe_form",)),
    (listed("[[10, 20, 100, 200]]", "4.0"), ("keyframe_form",)),
    (listed("[[10, 20, 100, 200 , ],]"), ("trailing_comma",)),
    (listed("[[10, 20, 100, 200]]").replace('"', "'"), ("single_quotes",)),
    (listed("[[10, 20, 100, 200]]").upper().replace("KEYFRAME", "keyframe"), None),
    (f"<THINK>t</THINK><ANSWER>{INSIDE}</ANSWER>", ("upper_tags",)),
    (answer("{'label': 'the \\'red\\' \"one\"', " + INSIDE[1:]), ("single_quotes",)),
]


@pytest.mark.parametrize(("text", "repairs"), LOOSE)
def test_a_loose_reply_is_read_for_inference_and_says_how(text, repairs):
    strict, loose = parse_reply(text), read_reply(text)
    assert not strict.usable
    assert read_reply(text, reading="strict") == strict
    if repairs is None:  # keys in upper case are other keys
        assert loose == strict
        return
    assert loose.answer == Answer(keyframe=4, boxes=((10, 20, 100, 200),))
    assert loose.repairs == tuple(name for name in REPAIRS if name in repairs)
    assert (loose.problem, loose.detail, loose.reached) == (strict.problem, strict.detail, strict.reached)


@pytest.mark.parametrize(
    "text",
    [
        listed("[[10, 20, 100, 200]]", '"4.5"'),
        listed("[[10, 20, 100, 200]]", "4.5"),
        listed("[[10, 20, 100, 200]]", '"frame 4"'),
        listed("[[10, 20, 100, 200]]", "true"),
        listed('[["ten", 20, 100, 200]]'),
        listed('[["nan", 20, 100, 200]]'),
        listed("[[100, 20, 10, 200]]", '"4"'),
        listed('[{"bbox": [10, 20, 90, 180]}]'),  # corners, or a corner and a size? nobody can say
        listed('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4, "bbox_2d": [5, 6, 7, 8]}]'),
        "<think>perhaps " + INSIDE,  # a draft
        "<thinking>perhaps " + INSIDE,
        answer(f"at first {INSIDE}, but no: {OTHER}"),
        answer(f"[{INSIDE}, {OTHER}]"),
        f"<think>t</think>{INSIDE}\n{OTHER}",
        "<think>t</think><answer>" + INSIDE[:-3],
        answer('{"keyframe_timestamp": "4", "keyframe_timestamp": 5, "bbox_2d_list": [[1, 2, 3, 4]]}'),
    ],
)
def test_what_could_mean_two_things_is_not_forgiven(text):
    assert read_reply(text) == parse_reply(text)
    assert not read_reply(text).usable


DENIALS = [
    "There is no such object in the video.",
    "The video shows no such object. In the required format:",
    "There are no matching objects here; a guess would be",
    "The red car isn't in the video, so I answer",
    "A dog does not appear in this clip.",
    "The scene doesn’t contain a horse:",
    "It is not visible in any frame.",
    "I cannot find the person.",
    "I was unable to locate it.",
]


@pytest.mark.parametrize("words", DENIALS)
def test_an_object_in_words_that_deny_the_target_is_no_answer(words):
    """Without tags of its own the object may be an example of the format; boxes and words disagree in any case."""
    for text in (
        f"<think>t</think>{words} {INSIDE}",
        f"<think>t</think>{INSIDE}\n{words}",
        answer(f"{words} {INSIDE}"),
        f"{words}\n```json\n{INSIDE}\n```",
    ):
        assert read_reply(text) == parse_reply(text)
        assert not read_reply(text).usable


@pytest.mark.parametrize(
    "words",
    [
        "It is not visible in frame 0 but in frame 4:",
        "There is no occlusion in frame 4.",
        "No other object moves, so",
        "The cat does not move. It is largest in frame 4.",
        "Not the dog but the cat:",
    ],
)
def test_words_that_deny_something_else_leave_the_answer(words):
    assert read_reply(f"<think>t</think>{words} {INSIDE}").answer == Answer(keyframe=4, boxes=((10, 20, 100, 200),))


def test_thinking_may_deny_and_a_tagged_answer_counts_by_itself():
    """Text in the think block is a draft, and an answer block that holds only the object is not prose."""
    thought = f"<think>There is no such object? Yes, there is.</think>{INSIDE}"
    assert read_reply(thought).usable
    assert read_reply(f"There is no such object. {answer(INSIDE.replace('4', '4.0', 1))}").usable


def test_a_half_good_list_gains_what_is_forgiven_and_loses_nothing():
    reply = read_reply(listed('[[1, 2, 3, 4], {"bbox_2d": [5, 6, 7, 8]}, null]'))
    assert reply.answer == Answer(keyframe=4, boxes=((1, 2, 3, 4), (5, 6, 7, 8)))
    assert (reply.entries, reply.problem, reply.repairs) == (3, "bad_boxes", ("box_objects",))


def test_the_lenient_reading_of_anything_adds_to_the_strict_one_and_changes_nothing_of_it():
    rng, forgiven = Random(1), set()
    pieces = [*PIECES, "'", "'keyframe_timestamp': 4", "```", '"4s"', "4.0", '{"bbox_2d": [1, 2, 3, 4]}', INSIDE]
    for i in range(50_000):
        text = generated_reply(rng) if i % 2 else "".join(rng.choices(pieces, k=rng.randrange(12)))
        text = rng.choice((text, text, answer(text), text.replace('"', "'"), text.upper()))
        strict, loose = parse_reply(text), read_reply(text)
        forgiven.update(loose.repairs)
        if strict.problem in (None, "not_well_formed", "no_boxes"):
            assert loose == strict
        elif loose != strict:
            assert loose.usable
            assert set(strict.answer.boxes if strict.answer else ()) <= set(loose.answer.boxes)
            assert all(math.isfinite(value) for box in loose.answer.boxes for value in box)
            assert type(loose.answer.keyframe) is int
    assert {"fence", "no_tags", "single_quotes"} <= forgiven


@given(st.integers(0, 10**6), st.lists(BOX, max_size=5), st.text(alphabet=st.characters(exclude_characters="<")))
def test_a_strictly_valid_reply_reads_the_same(keyframe, found, thinking):
    text = format_reply(thinking, Answer(keyframe=keyframe, boxes=tuple(found)))
    assert read_reply(text) == parse_reply(text)


GIANTS = {
    "brackets": "'[' * n",
    "brackets in an answer": "'<answer>' + '[' * n + '</answer>'",
    "brackets under the length limit": "'<answer>' + '[' * m + '</answer>'",
    "escaped quotes": "'<answer>' + chr(34) + (chr(92) + chr(34)) * (m // 2) + '</answer>'",
    "one long integer": "'<answer>' + '9' * m + '</answer>'",
    "one long fraction": "'<answer>[0.' + '9' * m + ']</answer>'",
    "open tags": "'<think>' * (n // 7)",
    "close tags": "'<think>' + '</think> ' * (n // 9) + '</answer>'",
    "spaces between tags": "'<think></think>' + ' ' * n + '</answer>'",
    "nested answers": "'<answer>' * (n // 8) + '</answer>' * (n // 9)",
    "open objects": "('{' + chr(39) + 'a' + chr(39) + ':') * (n // 5)",
    "objects that do not close": "'<think></think>' + ('{' + chr(34)) * (n // 2)",
    "single quotes": "chr(39) * n",
    "quoted quotes": "'<answer>{' + chr(39) + (chr(92) + chr(39)) * (m // 2) + '</answer>'",
    "commas": "'<answer>{' + chr(34) + ', ' * (m // 2) + '</answer>'",
    "a long keyframe text": "'<answer>{' + chr(34) + 'keyframe_timestamp' + chr(34) + ':' + chr(34) + ' ' * m + '4s'",
    "almost denials": "'<think></think>' + 'no ' * (n // 3)",
    "almost denials around an object": "'{' + chr(34) + 'keyframe_timestamp' + chr(34) + ':4}' + 'no a ' * (n // 5)",
    "repeated keys": "'<answer>{' + (chr(34) + 'a' + chr(34) + ':1,') * (m // 6) + '}</answer>'",
}
"""By name, Python expressions of n = 10,000,000 and of m, just under the longest answer that is read."""


@pytest.mark.parametrize("name", GIANTS)
def test_ten_megabytes_of_anything_are_graded(name):
    """Quadratic work on ten megabytes would take hours; the limit is there to stop it, not to measure."""
    code = f"from veason.answer import read_reply; n, m = 10**7, 10**6; print(read_reply({GIANTS[name]}).problem)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() in PROBLEMS
