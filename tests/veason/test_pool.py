"""Many items in order, in this process and in others."""

import os

import pytest

from veason.pool import map_in_order


def square(shared, item):
    if item == shared:
        raise ValueError(f"no {item}")
    return item * item, os.getpid()


def die(_, item):
    os._exit(3)


def numbers(shared, items, workers):
    return list(map_in_order(square, shared, items, workers=workers, label="squares", unit="n"))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    found = numbers(None, range(40), workers)
    assert [value for value, _ in found] == [n * n for n in range(40)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_are_raised_and_nothing_is_no_work(workers):
    assert numbers(None, [], workers) == []
    with pytest.raises(ValueError, match="no 3"):
        numbers(3, range(40), workers)


def test_a_worker_that_dies_is_told():
    with pytest.raises(RuntimeError, match="a worker died"):
        list(map_in_order(die, None, [1, 2], workers=2, label="", unit=""))
