"""Work on all cores: in order, each on a core of its own, and stopped when the caller stops."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import drhard.cores
from drhard.cores import AHEAD, on_all_cores

import pytest
import torch


@pytest.fixture(params=[1, 2, 5])
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def map_on_cores(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    with on_all_cores() as spread:
        yield from spread(work, items)


def threads_elsewhere() -> int:
    """How many threads torch uses in a new thread."""
    counted: list[int] = []
    other = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    other.start()
    other.join()
    return counted[0]


def test_results_come_in_order(cores: int) -> None:
    assert list(map_on_cores(lambda number: number * number, range(100))) == [number * number for number in range(100)]
    assert list(map_on_cores(abs, [])) == []


def test_each_core_works_for_itself(cores: int) -> None:
    meet = threading.Barrier(cores)  # broken unless all threads work at once

    def count_threads(_: int) -> int:
        meet.wait(timeout=60)
        return torch.get_num_threads()

    assert set(map_on_cores(count_threads, range(3 * cores))) == {1}
    assert torch.get_num_threads() == cores
    assert threads_elsewhere() == cores


def test_an_error_is_raised_in_its_turn(cores: int) -> None:
    results = map_on_cores(lambda number: 6 // number, [1, 2, 3, 0, 6])
    assert [next(results) for _ in range(3)] == [6, 3, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == cores


def test_nothing_is_begun_when_the_caller_has_stopped(cores: int) -> None:
    begun: list[int] = []
    list(map_on_cores(abs, [1]))
    threads = threading.active_count()
    results = map_on_cores(begun.append, range(1000))
    next(results)
    results.close()
    assert len(begun) <= AHEAD * cores
    assert threading.active_count() == threads


@pytest.mark.parametrize("items", [0, 1, 3])
def test_few_items_many_times(cores: int, items: int) -> None:
    """The threads may have nothing to do while some of them still begin."""
    for _ in range(300):
        drhard.cores._pools.clear()
        assert list(map_on_cores(abs, range(items))) == list(range(items))


def test_torch_keeps_its_threads_if_one_cannot_be_started(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if cores == 1:
        return  # no thread is started
    monkeypatch.setattr(drhard.cores, "_pools", {})
    submitted: list[object] = []
    submit = ThreadPoolExecutor.submit

    def fail(pool: ThreadPoolExecutor, work: Callable[[], None]) -> object:
        submitted.append(work)
        if len(submitted) == cores:
            raise RuntimeError("can't start new thread")
        return submit(pool, work)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        list(map_on_cores(abs, range(10)))
    assert threads_elsewhere() == torch.get_num_threads() == cores


def test_searches_at_the_same_time_have_all_cores(cores: int) -> None:
    """One starts its threads while the other asks how many there may be."""

    def search(_: int) -> set[int]:
        return set(map_on_cores(lambda number: time.sleep(0.0005) or torch.get_num_threads(), range(4)))

    with ThreadPoolExecutor(2) as callers:
        assert all(found == {1} for found in callers.map(search, range(60)))
    assert threads_elsewhere() == torch.get_num_threads() == cores


def test_threads_are_kept(cores: int) -> None:
    """New ones would each keep the memory that they have freed."""

    list(map_on_cores(abs, range(3)))
    kept = threading.enumerate()
    assert set(map_on_cores(lambda _: threading.current_thread(), range(10 * cores))) <= set(kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts processes anew")
def test_a_forked_process_starts_its_own(cores: int) -> None:
    list(map_on_cores(abs, range(3)))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put(list(map_on_cores(abs, range(-9, 0)))))
    process.start()
    assert results.get(timeout=60) == list(range(9, 0, -1))
    process.join()
    assert process.exitcode == 0
