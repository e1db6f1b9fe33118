"""Prefetching: everything in order, errors where it is used, no thread left behind."""

import threading
from collections.abc import Iterator

from drhard.prefetch import prefetch

import pytest


def test_everything_comes_in_order() -> None:
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []


def test_error_surfaces_after_what_came_before() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_thread_ends_when_the_work_is_given_up() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    threads = threading.active_count()
    items = prefetch(endless())
    assert next(items) == 1
    items.close()
    assert threading.active_count() == threads
