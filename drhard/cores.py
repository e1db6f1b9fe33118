"""Spread work over the cores: each has a thread of its own, in which torch computes on that core alone.

torch spreads each of its operations over all cores. In the steps between, which run on one core, the others are idle.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items for each core that wait or are worked on
_starting = threading.Lock()  # torch's number of threads is not what it should be while threads start
# By their number, the threads that were started; they are kept. The memory that a thread has freed is for that thread
# alone, so with new threads for each search a process would keep that of many.
_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a process has none of the threads of its parent


class Map(Protocol):
    """A function such as Python's map."""

    def __call__(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yield ``work(item)`` for each of ``items``, in their order."""


@contextmanager
def on_all_cores() -> Iterator[Map]:
    """Give a map that works in as many threads as torch may use cores.

    An error of the work is raised where its result is asked for. If the caller stops, no further item is begun.
    """
    with _starting:
        cores = torch.get_num_threads()
        if cores > 1 and cores not in _pools:
            _pools[cores] = _start(cores)
        threads = _pools.get(cores)
    if threads is None:
        yield map
        return
    with ExitStack() as begun:

        def on_cores(work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            results = _map(threads, AHEAD * cores, work, items)
            begun.callback(results.close)
            return results

        yield on_cores


def _map(
    threads: ThreadPoolExecutor, most: int, work: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(threads.submit(work, item))
            if len(under_way) == most:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:  # the caller has stopped, or work has failed
        for future in under_way:
            future.cancel()
        wait(under_way)


def _start(cores: int) -> ThreadPoolExecutor:
    """Return a pool whose threads have begun. torch uses one core in each."""
    threads, started = ThreadPoolExecutor(cores), threading.Barrier(cores + 1)

    def start() -> None:
        torch.get_num_threads()  # torch takes note of this thread, which would otherwise begin with all cores later
        torch.set_num_threads(1)  # here, but also for threads that torch takes note of from now on
        started.wait()

    try:
        for _ in range(cores):
            threads.submit(start)  # each in a thread of its own, because all wait for each other
        started.wait()
    except BaseException:  # a thread could not be started, or the user has interrupted
        started.abort()
        threads.shutdown()
        raise
    finally:
        torch.set_num_threads(cores)
    return threads
