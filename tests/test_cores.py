"""Work on all cores: in order, each on a core of its own, and stopped when the caller stops."""

import threading
from collections.abc import Iterator

from drhard.cores import AHEAD, map_on_cores

import pytest
import torch


@pytest.fixture(params=[1, 2, 5])
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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
    with_others: list[int] = []
    other = threading.Thread(target=lambda: with_others.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert with_others == [cores]


def test_an_error_is_raised_in_its_turn(cores: int) -> None:
    results = map_on_cores(lambda number: 6 // number, [1, 2, 3, 0, 6])
    assert [next(results) for _ in range(3)] == [6, 3, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == cores


def test_nothing_is_begun_when_the_caller_has_stopped(cores: int) -> None:
    begun: list[int] = []
    results = map_on_cores(begun.append, range(1000))
    next(results)
    results.close()  # type: ignore[attr-defined]
    count = len(begun)
    assert count <= AHEAD * cores
    assert threading.active_count() == len(threading.enumerate())
    assert len(begun) == count
