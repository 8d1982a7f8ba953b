"""No secret and no control character in what is printed."""

from hypothesis import given
from hypothesis import strategies as st

from veason.safe_text import printable

KEY = "key-abcdefghijklmnop"


def test_a_secret_is_masked_whole_and_in_parts():
    assert printable(f"bad {KEY}!", secrets=[KEY]) == "bad ***!"
    assert printable("ends in klmnop.", secrets=[KEY]) == "ends in ***."
    assert printable("bad key-ab***", secrets=[KEY]) == "bad ***"
    assert printable("short mnop", secrets=[KEY]) == "short mnop"


def test_what_looks_like_a_key_is_masked_without_being_given():
    assert printable("no sk-abcdefghijk here") == "no *** here"
    assert printable("Authorization: Bearer abcdef") == "Authorization: Bearer ***"
    assert printable("http://me:secret@host/v1") == "http://***@host/v1"
    assert printable("wrong key: ab-cd*****wxyz.") == "wrong key: ***."


def test_control_characters_are_shown_and_lines_joined():
    assert printable("a\x1b[31m\x07b\n\tc\u202e\ud800") == r"a\x1b[31m\x07b c\u202e\ud800"
    assert printable("x" * 10, limit=4) == "xxx…"


@given(st.text(), st.integers(0, 14), st.text())
def test_no_six_characters_of_a_secret_come_through(before, start, after):
    made = printable(before + KEY[start : start + 9] + after, secrets=[KEY])
    assert not any(KEY[i : i + 6] in made for i in range(len(KEY) - 5))
    assert made.replace("\u200d", "").isprintable()
