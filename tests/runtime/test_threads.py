"""Threads that compute results ahead of use."""
import threading
import time

import pytest

from runtime.threads import prefetch


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_results_come_in_order(threads):
    def slow_at_first(number):
        time.sleep(0.02 if number < 3 else 0)
        return number ** 2
    squares = [number ** 2 for number in range(20)]
    assert list(prefetch(slow_at_first, range(20), threads)) == squares
    assert list(prefetch(slow_at_first, [], threads)) == []


def test_only_so_many_results_wait():
    """However many items there are, two results a thread and one are computed beyond those used."""
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number
    results = prefetch(lambda number: number, items(), 2)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * 2 + 1
    results.close()


def test_an_error_arrives_and_ends_the_work():
    done = []

    def fails(number):
        if number == 5:
            raise ValueError('five')
        done.append(number)
        return number
    with pytest.raises(ValueError, match='five'):
        list(prefetch(fails, range(1000), 2))
    assert len(done) < 20
    assert not any('ThreadPoolExecutor' in thread.name for thread in threading.enumerate())
