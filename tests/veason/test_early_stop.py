"""A run stops if its first replies are all unusable for one reason."""

import pytest

from veason.early_stop import EarlyStop


def test_the_last_of_the_first_replies_tells_when_all_are_unfit_for_one_reason():
    first = EarlyStop(3)
    assert [first.add("tags") for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("sound", [[None], ["tags", None], ["tags", "empty"], ["tags", "tags", None]])
def test_one_fit_reply_or_another_reason_ends_the_count(sound):
    first = EarlyStop(3)
    assert not any(first.add(reason) for reason in [*sound, *["tags"] * 9])
