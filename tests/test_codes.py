"""Search by int8 codes: the bounds hold, and it finds what a search in float64 finds, whatever the vectors are."""

import math
import os
import threading
import time
from pathlib import Path

import drhard.backends
import drhard.bounds
import drhard.code_file
import drhard.coded
import drhard.embeddings
import drhard.exact
import drhard.floors
import drhard.pairs
import drhard.rounded
from drhard.blocks import BLOCK_ROWS
from drhard.bounds import Bounds, numbers_at, places_of, reach
from drhard.code_file import open_codes
from drhard.coded import CodedSearch
from drhard.codes import GROUP, Codes, choose_mean, count_levels, encode_block, encode_documents, keep_codes
from drhard.collection import Collection
from drhard.embeddings import encode
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.files import DiskFault
from drhard.model_folder import load_encoder
from drhard.pairs import HostVectors
from drhard.products import int8_products
from drhard.provenance import stamp_path
from drhard.rounded import RoundedQueries, float32_error
from drhard.sieve import Sieve
from drhard.vectors import gather_rows

import numpy as np
import pytest
import torch
from helpers import call_script, save_tiny, write_collection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

CPU = torch.device("cpu")
PATIENT = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = "random clustered anisotropic duplicated zero denormal tiny huge outliers one_hot whole"
KINDS = NAMES.split()
WAYS = ("float32", "int8")


def make(kind: str, random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Vectors (count, dim) float32 of a kind."""
    vectors = random.standard_normal((count, dim))
    if kind == "clustered":
        vectors = random.standard_normal((3, dim))[random.integers(0, 3, count)] * 10 + vectors * 1e-3
    elif kind == "anisotropic":  # as contextual encoders give: the mean is far greater than the spread
        vectors += random.standard_normal(dim) * 25
    elif kind == "duplicated":
        vectors = vectors[random.integers(0, max(1, count // 10), count)]
    elif kind == "zero":
        vectors[random.random(count) < 0.5] = 0
    elif kind == "denormal":
        vectors *= 1e-42
    elif kind == "tiny":  # whose squares are 0 in float32
        vectors *= 1e-25
    elif kind == "huge":
        vectors *= 1e17
    elif kind == "outliers":
        vectors[random.random(vectors.shape) < 1e-3] *= 1e4
    elif kind == "one_hot":
        vectors = np.eye(dim)[random.integers(0, dim, count)] * random.integers(1, 3, (count, 1))
    elif kind == "whole":
        vectors = random.integers(-3, 4, (count, dim))
    return vectors.astype(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Documents, queries and k."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.sampled_from((1, 2, 8, 33, 128, 768, 1024, 1500)))
    documents = make(draw(st.sampled_from(KINDS)), random, draw(st.sampled_from((1, 5, 255, 256, 257, 900))), dim)
    queries = make(draw(st.sampled_from(KINDS)), random, draw(st.integers(1, 5)), dim)
    return documents, queries, draw(st.integers(1, len(documents)))


def choose(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make searches multiply in a way."""
    monkeypatch.setattr(drhard.rounded, "has_fast_int8", lambda _: way == "int8")


def multiply_norms(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The products of all norms, (Q, N) float64, to which float32's rounding is relative."""
    return np.outer(*(np.linalg.norm(vectors.astype(np.float64), axis=1) for vectors in (queries, documents)))


@PATIENT
@given(problem=problems(), way=st.sampled_from(WAYS))
def test_scores_are_within_the_bounds(
    monkeypatch: pytest.MonkeyPatch, problem: tuple[np.ndarray, np.ndarray, int], way: str
) -> None:
    documents, queries, _ = problem
    choose(way, monkeypatch)
    codes = keep_codes(documents, CPU)
    rounded = RoundedQueries(torch.from_numpy(queries), codes.mean)
    exact = queries.astype(np.longdouble) @ documents.T.astype(np.longdouble)
    norms = multiply_norms(queries, documents)
    for first in range(0, len(documents), 3 * GROUP):
        block = codes.part(first, min(first + 3 * GROUP, len(documents)))
        position = first + torch.arange(len(block.values))
        group = np.arange(len(block.values)) // GROUP
        bounds = rounded.bounds(block)
        slope, *ends = (of_group.numpy()[group] for of_group in (bounds.slope, bounds.lower, bounds.upper))
        found = rounded.multiply(block.values).numpy() * slope
        place = codes.rows(position).numpy()
        rounding = float32_error(queries.shape[1]) * norms[:, place]
        lower, upper = ((found + end).T for end in ends)
        assert (lower <= exact[:, place] - rounding).all() and (exact[:, place] + rounding <= upper).all()
        for query in range(len(queries)):
            lower, upper = rounded.bound_pairs(codes, torch.full_like(position, query), position)
            assert (lower.numpy() <= exact[query, place] - rounding[query]).all()
            assert (exact[query, place] + rounding[query] <= upper.numpy()).all()


@PATIENT
@given(
    problem=problems(),
    way=st.sampled_from(WAYS),
    numbers=st.tuples(
        st.sampled_from((1, 2, 7)),
        st.sampled_from((-3, 4)),
        st.sampled_from((0, 2, 24, 1000)),
        st.sampled_from((1, 16, 10**6)),
        st.sampled_from((1, 3)),
    ),
    in_file=st.booleans(),
)
def test_what_float64_finds_is_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    problem: tuple[np.ndarray, np.ndarray, int],
    way: str,
    numbers: tuple[int, int, int, int, int],
    in_file: bool,
) -> None:
    """Also where floors are guessed too high, and where rounds end early because many documents are found."""
    (documents, queries, k), (sampled, far_off, most, crowded, parts) = problem, numbers
    choose(way, monkeypatch)
    monkeypatch.setattr(drhard.exact, "scores_of_core", lambda: parts * GROUP * len(queries))  # up to four tiles
    monkeypatch.setattr(drhard.coded, "CROWDED", crowded)
    for name in ("SHARE", "LARGER", "SMALL"):
        monkeypatch.setattr(drhard.coded, name, 1)
    monkeypatch.setattr(drhard.bounds, "RANKED", 2 * GROUP)
    for name, value in {"SAMPLED": sampled, "FAR_OFF": far_off}.items():
        monkeypatch.setattr(drhard.floors, name, value)
    monkeypatch.setattr(drhard.coded, "most_kept", lambda k: most * k)
    source = mapped(tmp_path / "documents.memmap", documents) if in_file else documents
    scores, rows = ExactIndex(source, codes=keep_codes(documents, CPU)).search(queries, k)
    exact = queries.astype(np.float64) @ documents.T.astype(np.float64)
    norms = multiply_norms(queries, documents)
    rounding = 2 * float32_error(queries.shape[1]) * norms + 1e-40
    assert (np.abs(scores - np.take_along_axis(exact, rows, 1)) <= np.take_along_axis(rounding, rows, 1)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (np.diff(rows, axis=1)[np.diff(scores, axis=1) == 0] > 0).all()
    missed = exact - rounding
    np.put_along_axis(missed, rows, -np.inf, 1)
    assert (missed.max(axis=1) <= scores[:, -1]).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_search_of_many_blocks(monkeypatch: pytest.MonkeyPatch, way: str, tmp_path: Path) -> None:
    """Documents that get better and better, empty ones among them; the same from memory and from a file."""
    choose(way, monkeypatch)
    random = np.random.default_rng(3)
    documents = random.standard_normal((3 * BLOCK_ROWS + 100, 16), dtype=np.float32)
    documents[:, 0] += np.linspace(0, 2, len(documents), dtype=np.float32)
    queries = random.standard_normal((70, 16), dtype=np.float32)
    left_out = np.flatnonzero(random.random(len(documents)) < 0.3)
    documents.tofile(tmp_path / "documents.memmap")
    mapped = np.memmap(tmp_path / "documents.memmap", dtype=np.float32, mode="r", shape=documents.shape)
    scores, rows = ExactIndex(documents, left_out=left_out).search(queries, 50)
    for source in (documents, mapped):
        index = ExactIndex(source, left_out=left_out, query_rows=32, codes=keep_codes(source, CPU))
        monkeypatch.setattr(index, "_search_pass", None)  # it is not needed
        found_scores, found_rows = index.search(queries, 50)
        np.testing.assert_allclose(found_scores, scores, rtol=1e-5)
        assert (found_rows != rows).mean() < 1e-3 and not np.isin(found_rows, left_out).any()


def test_wide_bounds_lead_to_a_search_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that are nearly equal cannot be told apart by their codes."""
    monkeypatch.setattr(drhard.exact, "scores_of_core", lambda: 1 << 13)
    random = np.random.default_rng(4)
    documents = np.full((20_000, 8), 3, dtype=np.float32)
    documents[77] += 10
    documents[:, 1] += random.standard_normal(20_000, dtype=np.float32) * 1e-5
    queries = random.standard_normal((3, 8), dtype=np.float32)
    expected = ExactIndex(documents).search(queries, 10)
    index = ExactIndex(documents, codes=keep_codes(documents, CPU))
    again = []
    monkeypatch.setattr(index, "_search_pass", lambda *of: again.append(1) or ExactIndex._search_pass(index, *of))
    for found, wanted in zip(index.search(queries, 10), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert again


def test_sorted_documents_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better and better documents: few of those looked through at a time are kept, though all reach the floors."""
    random = np.random.default_rng(0)
    documents = random.standard_normal((60_000, 16), dtype=np.float32)
    documents[:, 0] = np.linspace(0, 60, len(documents))
    queries = np.abs(random.standard_normal((300, 16), dtype=np.float32))
    kept, add = [0], Sieve.add

    def note(sieve: Sieve, *of_tile: object) -> None:
        add(sieve, *of_tile)  # type: ignore[arg-type]
        kept.append(sieve.kept)

    monkeypatch.setattr(Sieve, "add", note)
    for share in (drhard.floors.SAMPLED, 10**6):  # with and without a guess
        monkeypatch.setattr(drhard.floors, "SAMPLED", share)
        index = ExactIndex(documents, codes=keep_codes(documents, CPU))
        monkeypatch.setattr(index, "_search_pass", None)  # it is not needed
        _, rows = index.search(queries, 100)
        assert (rows == ExactIndex(documents).search(queries, 100)[1]).mean() > 0.999
    assert 0 < max(kept) < 2 * drhard.coded.most_kept(100) * len(queries)


def test_copies_that_follow_each_other_do_not_spoil_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((100, 32), dtype=np.float32).repeat(1000, axis=0)
    queries = documents[::7000] + random.standard_normal((15, 32), dtype=np.float32) * np.float32(0.3)
    index, searched, search = ExactIndex(documents, codes=keep_codes(documents, CPU)), [], CodedSearch._search
    monkeypatch.setattr(index, "_search_pass", None)  # it is not needed
    monkeypatch.setattr(CodedSearch, "_search", lambda *of: searched.append(1) or search(*of))
    _, rows = index.search(queries, 200)
    assert (rows == np.arange(15)[:, None] * 7000 + np.arange(200)).all() and len(searched) == 1


def test_scores_that_overflow_are_those_of_float32() -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((300, 8), dtype=np.float32) * np.float32(1e25)
    queries = random.standard_normal((2, 8), dtype=np.float32) * np.array([[1], [1e25]], np.float32)
    found = ExactIndex(documents, codes=keep_codes(documents, CPU)).search(queries, 200)
    for one, other in zip(found, ExactIndex(documents).search(queries, 200), strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_are_whole_numbers_that_float32_can_sum() -> None:
    for dim, levels in {8: 127, 768: 127, 1040: 127, 1041: 126, 4096: 63}.items():
        assert count_levels(dim) == levels and levels**2 * dim < 2**24


@pytest.mark.parametrize("shape", [(1, 8, 1), (300, 770, 33), (16, 1024, 8), (9000, 24, 5)])
def test_products_of_codes(shape: tuple[int, int, int]) -> None:
    rows, dim, columns = shape
    random = np.random.default_rng(0)
    left, right = (torch.from_numpy(random.integers(-127, 128, (n, dim), dtype=np.int8)) for n in (rows, columns))
    assert torch.equal(int8_products(left, right).long(), left.long() @ right.long().T)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    documents = np.zeros((20_000, 4), dtype=np.float32)
    documents[12_345, 2] = np.nan
    with pytest.raises(InputError, match="row 12345 has numbers that are not finite"):
        keep_codes(documents, CPU)


def test_any_mean_will_do() -> None:
    documents = make("random", np.random.default_rng(0), 100, 8)
    assert np.abs(choose_mean(documents) - documents.mean(axis=0)).max() < 1e-6
    for mean in (torch.zeros(8), torch.full((8,), 100.0)):
        [block] = encode_documents(documents, mean)
        exact = torch.from_numpy(documents)[block.places.long()].double() - mean.double()
        lost = (exact - block.values * block.scale.repeat_interleave(GROUP)[:100, None]).norm(dim=1)
        assert lost.max() <= block.lost.max()
    block = encode_block(torch.tensor([[3e38, 0.0]]), torch.tensor([-3e38, 0.0]), 127)
    assert math.isinf(block.lost)


@pytest.mark.parametrize(
    ("documents", "query", "best"),
    [
        ([[126.49e-27] * 2, [126.51e-27, 125.51e-27], [127e-27, -127e-27]], [1.0, 1.0], 0),  # squares are 0
        ([[-3e38]] * 9 + [[3e38]], [1e-38], 9),  # the distance to the mean is infinite
        ([[i / 256] for i in range(256)] + [[-127.0], [11.0]] + [[0.0]] * 254, [3e37], 257),  # codes times q are
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_numbers_at_the_ends_of_float32(
    documents: list[list[float]], query: list[float], best: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(way, monkeypatch)
    vectors = np.array([*documents, *(-np.array(documents))] if best == 0 else documents, dtype=np.float32)
    codes = keep_codes(vectors, CPU)
    _, rows = ExactIndex(vectors, codes=codes).search(np.array([query], dtype=np.float32), 1)
    assert rows.tolist() == [[best]]


@pytest.mark.parametrize("shares", [1, 2])
def test_a_sieve_keeps_what_may_be_among_the_best(shares: int) -> None:
    """Two queries, k = 2; bounds ± 1. The floor of the second was guessed too high."""
    sieve = Sieve(torch.tensor([-math.inf, 20.0], dtype=torch.float64), 2)
    one = torch.ones(1, 2, dtype=torch.float64)
    bounds = Bounds(slope=one, lower=-one, upper=one)
    exact = torch.tensor([5.0, 9.0, 3.5, 7.5, 6.2, 6.1])
    for position, score in enumerate(exact):
        products = torch.stack([score, score]).view(1, 2)
        places = places_of(reach(products, bounds.least_products(sieve.floors, torch.float32)))
        sieve.add(position, places, numbers_at(products, places), bounds)
    assert sieve.kept == 6  # of the second query, none

    def score(query: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return exact[position], exact[position]

    sieve.sharpen(score, all_pairs=False)
    assert sieve.floors.tolist() == [7.5, 20] and sieve.kept == 2  # at most 7.2 is the next
    sieve = Sieve.join(sieve.split(shares, map))
    assert sieve.floors.tolist() == [7.5, 20] and sieve.kept == 2
    scores, rows, missed = sieve.best(score, lambda position: 10 - position)
    assert scores[0].tolist() == [9, 7.5] and rows[0].tolist() == [9, 7] and missed.tolist() == [False, True]


def test_the_largest_results_of_a_pass_are_bounded() -> None:
    index = ExactIndex(np.zeros((10**6, 768), dtype=np.float32), memory_gb=1.0)
    assert index.count_together(100) > drhard.exact.QUERY_ROWS


@pytest.mark.parametrize("cores", [1, 16, 64])
def test_passes_stay_large_with_codes(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer queries in a pass, a file would be read again and again."""
    documents = np.zeros((1000, 768), dtype=np.float32)
    index = ExactIndex(documents, codes=keep_codes(documents, CPU))
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert index.count_together(100) > 4000 and index.count_together(1000) > 800
    assert index.count_together(100) * drhard.coded.bytes_kept(100) < 2e9


# The file


def mapped(path: Path, documents: np.ndarray) -> np.memmap:
    documents.tofile(path)
    return np.memmap(path, dtype=np.float32, mode="r", shape=documents.shape)


def same_codes(left: Codes, right: Codes) -> bool:
    return all(torch.equal(one, other) for one, other in zip(vars(left).values(), vars(right).values(), strict=True))


@pytest.mark.parametrize("count, dim", [(1, 3), (300, 33), (2 * BLOCK_ROWS + 77, 8)])
def test_a_file_keeps_the_codes(tmp_path: Path, count: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = mapped(tmp_path / "passages.memmap", make("random", np.random.default_rng(0), count, dim))
    kept = keep_codes(documents, CPU)
    assert same_codes(open_codes(documents), kept)
    with safe_open(tmp_path / "passages.int8", "pt") as file:
        assert file.get_tensor("values").shape[1] == dim
    monkeypatch.setattr(drhard.code_file, "encode_documents", None)  # the file is read
    assert same_codes(open_codes(documents), kept)


@pytest.mark.parametrize("damage", ["stamp", "short", "values", "places", "other embeddings", "another row", "no file"])
def test_a_file_that_cannot_be_used_is_made_again(tmp_path: Path, damage: str) -> None:
    documents = mapped(tmp_path / "passages.memmap", make("random", np.random.default_rng(0), 3000, 8))
    path = tmp_path / "passages.int8"
    open_codes(documents)
    content = bytearray(path.read_bytes())
    if damage == "stamp":
        stamp_path(path).write_text("{")
    elif damage == "short":
        path.write_bytes(content[:5000])
    elif damage == "values":
        content[1000:9000] = bytes(8000)
        path.write_bytes(content)
    elif damage == "places":
        content[-800:-790] = bytes(10)
        start = len(content) - 8 * 4 - 3 * 8 * 12 - 3000 * 2
        content[start : start + 10] = bytes(10)
        path.write_bytes(content)
    elif damage == "other embeddings":
        documents = mapped(tmp_path / "passages.memmap", make("random", np.random.default_rng(1), 3000, 8))
    elif damage == "another row":
        written = np.memmap(tmp_path / "passages.memmap", np.float32, "r+", shape=(3000, 8))
        written[5] = 1
        written.flush()
        os.utime(tmp_path / "passages.memmap")
    else:
        path.unlink()
    assert same_codes(open_codes(documents), keep_codes(documents, CPU))
    assert same_codes(open_codes(documents), keep_codes(documents, CPU))


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), DiskFault("the disk is full")])
def test_codes_that_cannot_be_written_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    documents = mapped(tmp_path / "passages.memmap", make("random", np.random.default_rng(0), 300, 8))

    def refuse(path: Path) -> None:
        raise error

    monkeypatch.setattr(drhard.code_file, "write_whole_file", refuse)
    assert same_codes(open_codes(documents), keep_codes(documents, CPU))
    assert "passages.int8: cannot be written" in caplog.text and not list(tmp_path.glob("*.int8*"))


def test_a_part_of_a_memmap_gets_no_file(tmp_path: Path) -> None:
    documents = mapped(tmp_path / "passages.memmap", make("random", np.random.default_rng(0), 300, 8))
    assert same_codes(open_codes(documents[:100]), keep_codes(documents[:100], CPU))
    assert same_codes(open_codes(np.array(documents)), keep_codes(documents, CPU))
    assert not list(tmp_path.glob("*.int8*"))


def test_rows_of_a_file_are_gathered(tmp_path: Path) -> None:
    vectors = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    file = mapped(tmp_path / "vectors.memmap", vectors)
    rows = np.random.default_rng(0).integers(0, 1000, (30, 20))
    for source in (file, vectors, file[10:990]):
        np.testing.assert_array_equal(gather_rows(source, rows % len(source)), np.asarray(source)[rows % len(source)])
    assert gather_rows(file, np.empty((0, 3), dtype=np.int64)).shape == (0, 3, 4)


def as_a_gpu_multiplies(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The products lie in a wider matrix, because both sides were filled up to a multiple of eight."""
    wide = torch.empty(len(rows), len(matrix) + 8, dtype=torch.int32)
    wide[:, : len(matrix)] = rows.long() @ matrix.long().T
    return wide[:, : len(matrix)]


@pytest.mark.parametrize("queries", [1, 5, 8])
def test_products_may_be_a_part_of_a_matrix(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    documents, asked = (make("random", random, count, 32) for count in (3000, queries))
    choose("int8", monkeypatch)
    expected = ExactIndex(documents, codes=keep_codes(documents, CPU)).search(asked, 10)
    monkeypatch.setattr(drhard.rounded, "int8_products", as_a_gpu_multiplies)
    found = ExactIndex(documents, codes=keep_codes(documents, CPU)).search(asked, 10)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("spread", [0.023, 0.0235, 0.024, 0.04, 0.05, 0.06])
def test_whether_a_search_is_given_up_does_not_depend_on_the_faster_core(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dimension makes the codes coarse, so that nearly too many documents are kept."""
    random = np.random.default_rng(0)
    queries = torch.from_numpy(make("random", random, 32, 64))
    documents = make("random", random, 20_000, 64) * np.float32(spread)
    documents[:, 0] = random.standard_normal(20_000)
    queries[:, 0] = 0
    add, outcomes = Sieve.add, set()

    def add_late(*of_tile: object) -> None:
        time.sleep(float(random.random()) * 0.002)
        add(*of_tile)  # type: ignore[arg-type]

    monkeypatch.setattr(Sieve, "add", add_late)
    monkeypatch.setattr(drhard.rounded, "has_fast_int8", lambda _: True)
    codes = keep_codes(documents, CPU)
    for _ in range(6):
        found = CodedSearch(codes, HostVectors(documents), 16, 16 * GROUP).search(queries, 20)
        outcomes.add(None if found is None else tuple(part.numpy().tobytes() for part in found))
    assert len(outcomes) == 1


def test_documents_that_will_be_scored_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    documents = mapped(tmp_path / "passages.memmap", make("random", random, 20_000, 16))
    queries = make("random", random, 2, 16)
    monkeypatch.setattr(drhard.pairs, "BETWEEN", 0)  # as if they were few in many
    ahead: list[int] = []

    def note(file: int, first: int, size: int, advice: int) -> None:
        assert size == 64 and advice == os.POSIX_FADV_WILLNEED
        ahead.append(first // size)

    monkeypatch.setattr(os, "posix_fadvise", note)
    index = ExactIndex(documents, codes=keep_codes(documents, CPU))
    _, rows = index.search(queries, 20)
    while any(thread.name == "read ahead" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert 20 < len(ahead) < 600 and ahead == sorted(set(ahead))
    assert 0.3 < np.isin(rows, ahead).mean() < 1  # those in the first 60 %
    plain = ExactIndex(np.array(documents)).search(queries, 20)[1]
    np.testing.assert_array_equal(rows, plain)


def test_long_vectors_are_summed_in_the_same_way_wherever_they_stand() -> None:
    random = np.random.default_rng(0)
    documents, queries = make("random", random, 40, 9000), torch.from_numpy(make("random", random, 1, 9000))
    query, rows = torch.zeros(40, dtype=torch.int64), torch.arange(40)
    together = HostVectors(documents).score(queries, query, rows)
    alone = [HostVectors(documents).score(queries, query[:1], rows[place : place + 1]) for place in range(40)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("between", [0, 8, 10**6])
def test_documents_are_scored_again_in_the_same_way_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    """In memory, fetched row by row, or read from end to end: the same bits."""
    random = np.random.default_rng(0)
    documents, queries = (random.standard_normal((count, 24), np.float32) for count in (30_000, 7))
    path = tmp_path / "passages.memmap"
    documents.tofile(path)
    monkeypatch.setattr(drhard.pairs, "BETWEEN", between)
    monkeypatch.setattr(drhard.pairs, "AGAIN", 1000)
    pairs = np.sort(random.choice(7 * 30_000, 9_000, replace=False))
    pairs = np.concatenate([pairs[pairs < 6 * 30_000], np.arange(6 * 30_000, 6 * 30_000 + 3000)])  # some rows together
    query, row = (torch.from_numpy(part) for part in np.divmod(pairs, 30_000))
    asked = torch.from_numpy(queries)
    expected = HostVectors(documents).score(asked, query, row)
    found = HostVectors(np.memmap(path, np.float32, "r", shape=documents.shape)).score(asked, query, row)
    assert torch.equal(found, expected)
    np.testing.assert_allclose(found, (queries[query] * documents[row]).sum(axis=1), rtol=1e-4, atol=1e-4)


# ADORE


def test_adore_trains_the_same_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that do not fit in memory are searched by codes, and the vectors of the loss come from the file."""
    preprocess, model = write_collection(tmp_path / "pre"), save_tiny(tmp_path / "model", dropout=0.0)
    tokens = Collection(preprocess, 8, 16)
    encode(load_encoder(model), tokens.passages, tmp_path / "passages.memmap", 8, CPU)
    given = ["--init_path", model, "--preprocess_dir", preprocess, "--pembed_path", tmp_path / "passages.memmap"]
    given += ["--max_seq_length", 8, "--num_train_epochs", 2, "--per_gpu_batch_size", 3, "--neg_topk", 4]
    given += ["--metric_cut", 4, "--warmup_steps", 0, "--learning_rate", 1e-2]
    for name in ("memory", "disk"):
        if name == "disk":
            for module in (drhard.embeddings, drhard.backends):
                monkeypatch.setattr(module, "fits_in_memory", lambda documents: False)
        call_script("adore/train.py", *given, "--model_save_dir", tmp_path / name, "--log_dir", tmp_path / "log" / name)
    assert (tmp_path / "passages.int8").exists()
    weights = [load_encoder(tmp_path / name / "epoch-2").state_dict() for name in ("memory", "disk")]
    for one, other in zip(*(of.values() for of in weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
