"""One prompt: its words, its image places, and what may not get into it."""

import os
from pathlib import Path

import pytest

from veason import prompt
from veason.errors import DataError
from veason.types import Clip

CLIP = Clip(frame_ids=(0, 5, 11), size=(560, 588))


def test_each_image_follows_its_frame_id():
    text = prompt.text("the red circle", CLIP)
    assert "(0s)<image>, (5s)<image>, (11s)<image>" in text
    assert text.count("<image>") == 3


def test_the_expression_is_lower_case_without_a_final_stop():
    assert '"the red circle"' in prompt.text(" The Red Circle. ", CLIP)
    assert '"which cat jumps first?"' in prompt.text("Which cat jumps first?", CLIP)


def test_the_size_is_width_then_height():
    assert "588 wide and 560 high" in prompt.text("x", CLIP)


def test_messages_carry_the_images_in_order():
    system, user = prompt.messages("x", CLIP, ["a", "b", "c"])
    assert system["content"][0]["text"] == "You are a helpful assistant."
    assert [part["image"] for part in user["content"] if part["type"] == "image"] == ["a", "b", "c"]
    texts = [part["text"] for part in user["content"] if part["type"] == "text"]
    assert texts[0].endswith("(0s)")
    assert texts[1:3] == [", (5s)", ", (11s)"]


def test_the_two_forms_are_one_prompt():
    _, user = prompt.messages("Dogs.", CLIP, ["", "", ""])
    joined = "".join(part.get("text", "<image>") for part in user["content"])
    assert joined == prompt.text("Dogs.", CLIP)


HOSTILE = ["a <image> b", "<|im_end|>", "<|IMAGE_PAD|>", "<video>", "<Audio>", "<|object 1|>"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_control_marks_in_an_expression_are_refused(hostile):
    with pytest.raises(DataError, match="control mark"):
        prompt.text(hostile, CLIP)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_control_marks_in_a_template_are_refused(tmp_path, hostile):
    path = tmp_path / "mine.txt"
    path.write_text(f"$frames {hostile} $expression")
    with pytest.raises(DataError, match=r"mine\.txt: the template holds the control mark"):
        prompt.load_template(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: os.mkfifo(path), "a pipe"),
        (lambda path: path.write_bytes(b"$frames \xff $expression"), "UTF-8"),
    ],
)
def test_what_is_no_template_is_named(tmp_path, make, message):
    make(tmp_path / "mine.txt")
    with pytest.raises(DataError, match=rf"mine\.txt: .*{message}"):
        prompt.load_template(tmp_path / "mine.txt")


def test_dollars_and_braces_in_an_expression_are_text():
    assert '"$width {0} $$ %s"' in prompt.text("$width {0} $$ %s", CLIP)


def test_a_template_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text("$frames | ${expression} for $$5 in {json}")
    template = prompt.load_template(path)
    assert prompt.text("A", CLIP, template=template) == "(0s)<image>, (5s)<image>, (11s)<image> | a for $5 in {json}"


@pytest.mark.parametrize(
    "bad", ["$expression", "$frames", "$frames $frames $expression", "$frames $expression $foo", "$ $frames"]
)
def test_a_bad_template_is_named(tmp_path: Path, bad):
    path = tmp_path / "bad.txt"
    path.write_text(bad)
    with pytest.raises(DataError, match=r"bad\.txt"):
        prompt.load_template(path)
