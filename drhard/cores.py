"""Spread work over the cores: each has a thread of its own, in which torch computes on that core alone.

torch spreads each of its operations over all cores. In the steps between, which run on one core, the others are idle.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items for each core that wait or are worked on


def map_on_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` for each of ``items``, in their order, from as many threads as torch may use cores.

    An error of ``work`` is raised here. If the caller stops, no further item is begun.
    """
    cores = torch.get_num_threads()
    if cores == 1:
        yield from map(work, items)
        return
    started = threading.Barrier(cores + 1)

    def start() -> None:
        torch.set_num_threads(1)  # also the number that threads begin with, which is restored below
        torch.get_num_threads()  # this thread has begun
        started.wait()

    threads = ThreadPoolExecutor(cores, initializer=start)
    try:
        under_way: deque[Future[Result]] = deque()
        for _ in range(cores):
            threads.submit(int)  # the pool starts a thread, as no other has begun to wait for work
        started.wait()
        torch.set_num_threads(cores)
        for item in items:
            under_way.append(threads.submit(work, item))
            if len(under_way) == AHEAD * cores:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        started.abort()  # if a thread could not be started, the others wait for it
        threads.shutdown(cancel_futures=True)
