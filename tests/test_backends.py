"""Search backends: what they refuse before the long work, and where they search."""

from pathlib import Path

import drhard.backends
import drhard.code_file
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.retrieval import search_embeddings
from drhard.settings import SearchSettings

import numpy as np
import pytest


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="GPU"):
        SearchSettings(gpus=[99]).check(1, 2, 2)
    with pytest.raises(InputError, match="GPU"):
        SearchSettings(gpus=[99]).open(np.ones((2, 2), dtype=np.float32), 1)


def test_all_gpus_are_used_if_they_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpus=None is not the CPU: what fits on the GPUs decides where the search goes."""
    monkeypatch.setattr(drhard.backends, "find_gpus_with_room", lambda count, dim: [0] if count * dim < 9000 else [])
    monkeypatch.setattr(drhard.backends, "check_gpus", lambda gpus: None)
    monkeypatch.setattr(drhard.backends, "open_shards", lambda *_: "on the GPUs")
    documents = np.ones((4000, 2), dtype=np.float32)
    searching = SearchSettings(gpus=None)
    searching.check(3000, 4000, 2)
    assert searching.open(documents, 3000) == "on the GPUs"
    assert isinstance(searching.open(np.ones((5000, 2), dtype=np.float32), 3000), ExactIndex)
    assert isinstance(SearchSettings().open(documents, 10), ExactIndex)


@pytest.mark.parametrize("fast", [True, False])
def test_many_queries_are_searched_by_codes_where_int8_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """They are made once, in a file: a search may not take their memory for itself."""
    monkeypatch.setattr(drhard.backends, "has_fast_int8", lambda device: fast)
    monkeypatch.setattr(drhard.backends, "MANY_DOCUMENTS", 1000)
    monkeypatch.setattr(drhard.backends, "MANY_QUERIES", 50)
    random = np.random.default_rng(0)
    vectors, queries = random.standard_normal((1200, 8), np.float32), random.standard_normal((60, 8), np.float32)
    embeddings = np.memmap(tmp_path / "passages.memmap", np.float32, "w+", shape=vectors.shape)
    embeddings[:] = vectors
    embeddings.flush()
    found = {}
    for asked, documents in ((49, embeddings), (60, embeddings[:1000]), (60, vectors), (60, embeddings)):
        assert not (tmp_path / "passages.int8").exists()
        results = tmp_path / f"{len(found)}.results"
        with search_embeddings(queries[:asked], documents, SearchSettings(), results, 7) as parts:
            found[asked, len(documents)] = np.array(parts.rows)
    assert (tmp_path / "passages.int8").exists() == fast
    np.testing.assert_array_equal(found[60, 1200], np.argsort(-queries @ vectors.T, axis=1)[:, :7])


def test_codes_that_cannot_be_kept_or_are_not_needed_are_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a file, the codes would take 6.9 GB of memory at MS MARCO's size."""
    monkeypatch.setattr(drhard.backends, "has_fast_int8", lambda device: True)
    monkeypatch.setattr(drhard.backends, "MANY_DOCUMENTS", 1000)
    random = np.random.default_rng(0)
    vectors, queries = random.standard_normal((1200, 8), np.float32), random.standard_normal((60, 8), np.float32)
    vectors.tofile(tmp_path / "passages.memmap")
    embeddings = np.memmap(tmp_path / "passages.memmap", np.float32, "r", shape=vectors.shape)
    with pytest.raises(KeyboardInterrupt), search_embeddings(queries, embeddings, SearchSettings(), tmp_path / "r", 7):
        raise KeyboardInterrupt
    monkeypatch.setattr(drhard.backends, "MANY_QUERIES", 50)
    with search_embeddings(queries, embeddings, SearchSettings(), tmp_path / "r", 7) as complete:
        expected = np.array(complete.rows)
    assert not (tmp_path / "passages.int8").exists()

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drhard.code_file, "write_whole_file", refuse)
    monkeypatch.setattr(drhard.code_file, "keep_codes", None)
    with search_embeddings(queries, embeddings, SearchSettings(), tmp_path / "r", 7) as found:
        np.testing.assert_array_equal(found.rows, expected)
    assert "passages.int8: cannot be written" in caplog.text


@pytest.mark.parametrize("memory_gb", [0, -1, 0.4, float("nan"), float("inf")])
def test_no_memory_is_refused(memory_gb: float) -> None:
    with pytest.raises(InputError, match="--search_memory_gb"):
        SearchSettings(memory_gb=memory_gb).check(1, 5, 2)


def test_ms_marcos_training_queries_are_searched_in_a_few_passes() -> None:
    """The published flags of mining: 502,939 queries, 210 of 8,841,823 passages each, within the default 2 GB."""
    SearchSettings().check(210, 8_841_823, 768)
    SearchSettings(gpus=None).check(210, 8_841_823, 768)
    index = SearchSettings().open(np.broadcast_to(np.float32(0), (8_841_823, 768)), 210)
    assert -(-502_939 // index.count_together(210)) <= 5
