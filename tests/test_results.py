"""Results of a search on disk: whole, resumed after the last pass, one writer's."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from drhard.errors import InputError
from drhard.results import Parts, results_path, search_on_disk

import numpy as np
import pytest
from helpers import no_larger_files_than

QUERIES, K = 23, 3
SCORES = np.random.default_rng(0).normal(size=(QUERIES, K)).astype(np.float32)
ROWS = np.random.default_rng(1).integers(-1, 2**31 - 1, (QUERIES, K))
MADE_FROM = {"queries": "these", "documents": "those"}


class Killed(BaseException):
    """What ends a search in its middle."""


class Search:
    """Yields the results in passes of ``together`` queries; ends after ``last``."""

    def __init__(self, together: int = 5, last: int | None = None):
        self.together, self.last = together, last
        self.begun_at: int | None = None

    def __call__(self, done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.begun_at = done
        for number, first in enumerate(range(done, QUERIES, self.together)):
            if number == self.last:
                raise Killed
            part = slice(first, first + self.together)
            yield SCORES[part], ROWS[part]


def search(results: Path, search: Callable[[int], Parts], made_from: dict[str, str] = MADE_FROM) -> None:
    with search_on_disk(results, made_from, QUERIES, K, search) as found:
        np.testing.assert_array_equal(found.scores, SCORES)
        np.testing.assert_array_equal(found.rows, ROWS)
        assert found.scores.dtype == np.float32 and found.rows.dtype == np.int32


def test_results_are_there_in_the_block_and_gone_after_it(tmp_path: Path) -> None:
    search(results_path(tmp_path / "new", "dev"), Search())
    assert not list((tmp_path / "new").iterdir())


def test_a_search_that_was_stopped_resumes_after_its_last_pass(tmp_path: Path) -> None:
    results = results_path(tmp_path, "dev")
    with pytest.raises(Killed):
        search(results, Search(last=2))
    left = [f"dev.rank.tsv.found.{end}" for end in ("partial", "partial.json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    with open(tmp_path / "dev.rank.tsv.found.partial", "ab") as file:
        file.write(b"8 bytes " * (K + 1))  # a whole result, and a part of another, of a pass that was cut off
    resumed = Search(together=4)
    search(results, resumed)
    assert resumed.begun_at == 10
    assert not list(tmp_path.iterdir())


def test_a_search_that_was_stopped_in_the_block_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(Killed), search_on_disk(tmp_path / "results", MADE_FROM, QUERIES, K, Search()):
        raise Killed
    resumed = Search()
    search(tmp_path / "results", resumed)
    assert resumed.begun_at is None


@pytest.mark.parametrize("change", ["made from", "depth", "stamp damaged", "stamp gone"])
def test_results_of_something_else_are_not_resumed(tmp_path: Path, change: str) -> None:
    stamp = tmp_path / "results.partial.json"
    wrong = np.zeros((QUERIES, 2 if change == "depth" else K))
    made_from = {"queries": "others"} if change == "made from" else MADE_FROM
    with (
        pytest.raises(Killed),
        search_on_disk(tmp_path / "results", made_from, QUERIES, wrong.shape[1], lambda _: iter([(wrong, wrong)])),
    ):
        raise Killed
    if change == "stamp damaged":
        stamp.write_text("{")
    elif change == "stamp gone":
        stamp.unlink()
    anew = Search()
    search(tmp_path / "results", anew)
    assert anew.begun_at == 0


def test_the_second_of_two_is_refused_until_the_block_ends(tmp_path: Path) -> None:
    results = results_path(tmp_path, "dev")

    def meanwhile(done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with pytest.raises(InputError, match=r"dev\.rank\.tsv\.found: another process is writing it"):
            search(results, Search())
        yield SCORES, ROWS

    with search_on_disk(results, MADE_FROM, QUERIES, K, meanwhile) as found:
        with pytest.raises(InputError, match=r"dev\.rank\.tsv\.found: another process is writing it"):
            search(results, Search(), {"queries": "others"})
        np.testing.assert_array_equal(found.rows, ROWS)


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """Embeddings that are finite can be so large that their products are not."""

    def search(_: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield np.array([[np.inf, 1]], dtype=np.float32), np.array([[3, 0]])

    with pytest.raises(InputError, match="a score is not finite"), search_on_disk(tmp_path / "all", {}, 1, 2, search):
        pass


def test_an_error_of_the_search_is_not_that_of_the_disk(tmp_path: Path) -> None:
    """A file of embeddings that cannot be read, for instance."""

    def broken(done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield SCORES[:5], ROWS[:5]
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="^.Errno 5. Input/output error$"):
        search(tmp_path / "all", broken)
    resumed = Search()
    search(tmp_path / "all", resumed)
    assert resumed.begun_at == 5


def test_an_error_in_the_block_is_not_that_of_the_disk(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as raised, search_on_disk(tmp_path / "all", MADE_FROM, QUERIES, K, Search()):
        raise full
    assert raised.value is full


def test_a_full_disk_is_one_sentence_and_the_search_resumes(tmp_path: Path) -> None:
    with no_larger_files_than(16 * K * 8), pytest.raises(InputError, match="all: File too large .the disk mounted at"):
        search(tmp_path / "all", Search())
    resumed = Search()
    search(tmp_path / "all", resumed)
    assert resumed.begun_at == 15
