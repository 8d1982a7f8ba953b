"""Which rows go through the model together."""

from __future__ import annotations

from verl.utils.micro_batches import by_count, by_tokens, tokens_of


def test_rows_of_their_own_are_counted_off():
    assert by_count(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert by_count([], 2) == []


def test_groups_stay_whole_where_they_fit():
    assert by_count("aaabbbc", 4) == [[0, 1, 2], [3, 4, 5, 6]]
    assert by_count("aaaaabb", 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert by_count("aab", 1) == [[0], [1], [2]]


def test_rows_of_a_group_come_together_from_wherever_they_stand():
    assert by_count("abab", 2) == [[0, 2], [1, 3]]
    assert by_tokens([(5, 1)] * 4, "abab", 7) == [[0, 2], [1, 3]]


def test_tokens_of_rows_apart_are_those_of_the_padded_rectangle():
    assert tokens_of([(10, 2), (4, 3)], [0, 1]) == 2 * (10 + 3)


def test_tokens_of_shared_prompts_are_counted_once_and_without_padding():
    assert tokens_of([(10, 2), (10, 5), (4, 3)], "aab") == 10 + 2 + 5 + 4 + 3


def test_by_tokens():
    sizes = [(10, 2), (4, 2), (10, 4), (4, 1), (5, 1), (30, 30)]
    parts = by_tokens(sizes, range(6), 30)
    assert sorted(row for part in parts for row in part) == list(range(6))
    assert parts[0] == [5]  # too long for any company
    assert all(tokens_of([sizes[row] for row in part], part) <= 30 for part in parts[1:])
    assert len(parts) == 3
    assert by_tokens([], [], 30) == []


def test_by_tokens_is_even():
    parts = by_tokens([(10, 0)] * 6, range(6), 50)  # not 5 and 1
    assert [len(part) for part in parts] == [3, 3]


def test_by_tokens_of_shared_prompts_cuts_between_groups():
    sizes = [(10, 3)] * 4 + [(8, 3)] * 4
    assert by_tokens(sizes, "aaaabbbb", 22 + 8 + 3) == [[0, 1, 2, 3], [4, 5, 6, 7]]  # 22 and 20, not 33 and 17
