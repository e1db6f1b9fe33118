"""Compressed indexes: the same as faiss used directly, written and read back, or refused; ADORE with them."""

import re
from collections.abc import Callable
from pathlib import Path

import drhard.compressed
from drhard.adore import Candidates, measure_retrieval
from drhard.compressed import build, check_kind
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.faiss_index import FaissIndex
from drhard.files import digest_file, write_whole_file
from drhard.index import Index
from drhard.runs import read_run
from drhard.settings import SearchSettings

import faiss
import numpy as np
import pytest
from helpers import call_script, refused, run_script, save_tiny, write_collection
from safetensors.numpy import load_file

DIM = 16
FACTORIES = ["PQ4x4", "OPQ4,PQ4x4", "IVF8,Flat", "SQ8", "IVF4,PQ4x4", "HNSW8"]


@pytest.fixture(scope="module")
def documents() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(9, DIM)).astype(np.float32)


def open_index(documents: np.ndarray, factory: str, path: Path | None = None, **more: object) -> Index:
    return SearchSettings(factory=factory, index_path=path, **more).open(documents, 1)


def faiss_index(documents: np.ndarray, factory: str, metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    index = faiss.index_factory(documents.shape[1], factory, metric)
    index.train(documents)
    index.add(documents)
    return index


def assert_equal_results(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """The same scores; rows may be told apart by scores alone, since equal codes have equal scores."""
    (scores, rows), (expected_scores, expected_rows) = found, expected
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    for ours, theirs, of in zip(rows, expected_rows, scores, strict=True):
        certain = ~np.isclose(of, of[-1])  # ties at the end of the list may be cut in another way
        assert set(ours[certain]) == set(theirs[certain])


def test_flat_is_exact(documents: np.ndarray, queries: np.ndarray) -> None:
    index = open_index(documents, "Flat")
    assert isinstance(index, ExactIndex)
    scores, rows = index.search(queries, 20)
    exact = queries.astype(np.float64) @ documents.T.astype(np.float64)
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :20])
    np.testing.assert_allclose(scores, -np.sort(-exact)[:, :20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factory", FACTORIES)
def test_search_is_that_of_faiss(documents: np.ndarray, queries: np.ndarray, factory: str) -> None:
    expected = faiss_index(documents, factory).search(queries, 20)
    assert_equal_results(open_index(documents, factory).search(queries, 20), expected)
    if "HNSW" not in factory:  # a graph depends on how the documents are added
        in_blocks = FaissIndex(build(documents, factory, block_rows=130))
        assert_equal_results(in_blocks.search(queries, 20), expected)


def test_codes_are_learned_from_documents_spread_over_the_collection(
    documents: np.ndarray, queries: np.ndarray
) -> None:
    index = faiss.index_factory(DIM, "PQ4x4", faiss.METRIC_INNER_PRODUCT)
    index.train(documents[np.linspace(0, 599, 200).astype(int)])
    index.add(documents)
    found = FaissIndex(build(documents, "PQ4x4", training_rows=200)).search(queries, 20)
    assert_equal_results(found, index.search(queries, 20))
    assert not np.allclose(found[0], faiss_index(documents, "PQ4x4").search(queries, 20)[0], rtol=1e-5)


def test_a_memmap_is_indexed_like_an_array(documents: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    documents.tofile(tmp_path / "vectors.memmap")
    mapped = np.memmap(tmp_path / "vectors.memmap", dtype=np.float32, mode="r", shape=documents.shape)
    one, other = (open_index(vectors, "PQ4x4").search(queries, 20) for vectors in (mapped, documents))
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("factory", ["PQ4x4", "IVF8,Flat"])
def test_an_index_is_built_written_and_read_back(
    documents: np.ndarray, queries: np.ndarray, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "an.index"
    built = open_index(documents, factory, path).search(queries, 20)
    assert sorted(file.name for file in path.parent.iterdir()) == ["an.index", "an.index.json"]
    monkeypatch.setattr(drhard.compressed, "build", lambda *_: pytest.fail("it is there"))
    for named in (factory, "Flat"):  # Flat is what the flag is when it is left out
        found = open_index(documents, named, path).search(queries, 20)
        for ours, theirs in zip(found, built, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert_equal_results(built, faiss.read_index(str(path)).search(queries, 20))


def test_an_index_from_elsewhere_is_trusted_with_a_warning(
    documents: np.ndarray, queries: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = faiss_index(documents, "SQ8")
    faiss.write_index(index, str(tmp_path / "sq.index"))
    found = open_index(documents, "Flat", tmp_path / "sq.index")
    assert_equal_results(found.search(queries, 20), index.search(queries, 20))
    [warning] = caplog.messages
    assert "sq.index has no stamp (sq.index.json)" in warning


def write_index(path: Path, index: faiss.Index) -> None:
    faiss.write_index(index, str(path))


def damaged(path: Path, documents: np.ndarray, damage: Callable[[bytes], bytes]) -> None:
    open_index(documents, "SQ8", path)
    path.write_bytes(damage(path.read_bytes()))


REFUSED: dict[str, tuple[Callable[[Path, np.ndarray], object], str, str]] = {
    "other embeddings": (
        lambda path, documents: open_index(documents + 1, "PQ4x4", path),
        "PQ4x4",
        "was built from other emb",
    ),
    "other embeddings, without a factory": (
        lambda path, documents: open_index(documents[::-1], "PQ4x4", path),
        "Flat",
        "was built from other emb",
    ),
    "another factory": (
        lambda path, documents: open_index(documents, "PQ4x4", path),
        "PQ8x4",
        "is an index PQ4x4, not PQ8x4",
    ),
    "another dimension": (
        lambda path, documents: write_index(path, faiss_index(documents[:, :8].copy(), "SQ8")),
        "SQ8",
        "holds 600 documents of 8 dimensions, the embeddings are 600 x 16",
    ),
    "fewer documents": (
        lambda path, documents: write_index(path, faiss_index(documents[:599], "SQ8")),
        "Flat",
        "holds 599 documents of 16 dimensions, the embeddings are 600 x 16",
    ),
    "distances": (
        lambda path, documents: write_index(path, faiss_index(documents, "SQ8", faiss.METRIC_L2)),
        "SQ8",
        "searches by distance",
    ),
    "no index": (lambda path, _: path.write_bytes(b"no index at all"), "SQ8", "faiss cannot read an index in it"),
    "nothing": (lambda path, _: path.write_bytes(b""), "SQ8", "faiss cannot read an index in it"),
    "cut off": (lambda path, documents: damaged(path, documents, lambda data: data[:-9]), "SQ8", "is damaged, or not"),
    "a byte changed": (
        lambda path, documents: damaged(path, documents, lambda data: data[:500] + b"?" + data[501:]),
        "Flat",
        "is damaged, or not the file that an.index.json was written for; delete both",
    ),
    "cut off, without a stamp": (
        lambda path, documents: (
            damaged(path, documents, lambda data: data[:-9]),
            path.with_name("an.index.json").unlink(),
        ),
        "SQ8",
        "faiss cannot read an index in it",
    ),
    "another's stamp": (
        lambda path, documents: (
            open_index(documents, "SQ8", path),
            write_index(path, faiss_index(documents + 1, "SQ8")),
        ),
        "SQ8",
        "is damaged, or not the file",
    ),
    "damaged stamp": (
        lambda path, documents: (
            write_index(path, faiss_index(documents, "SQ8")),
            path.with_name("an.index.json").write_text("{"),
        ),
        "SQ8",
        "not a JSON file",
    ),
    "not there": (lambda *_: None, "Flat", "no such file or folder; give --index_factory to build it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_index_that_does_not_fit_is_refused(documents: np.ndarray, tmp_path: Path, case: str) -> None:
    make, factory, complaint = REFUSED[case]
    path = tmp_path / "an.index"
    make(path, documents)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match=complaint) as error:
        open_index(documents, factory, path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("factory", ["nonsense", "", "PQ5x4", "OPQ96,PQ96"])
def test_what_faiss_does_not_know_is_refused(documents: np.ndarray, factory: str) -> None:
    with pytest.raises(InputError) as error:
        SearchSettings(factory=factory).check(10, *documents.shape)
    message = str(error.value)
    assert message.startswith(f"--index_factory {factory}: faiss has no such index for 16 dimensions (")
    assert "\n" not in message and ".cpp" not in message and "std::" not in message


def test_too_few_documents_to_learn_from_are_refused(documents: np.ndarray, tmp_path: Path) -> None:
    SearchSettings(factory="IVF601,Flat").check(10, *documents.shape)  # only training tells
    with pytest.raises(InputError) as error:
        open_index(documents, "IVF601,Flat", tmp_path / "an.index")
    message = str(error.value)
    assert message.startswith("--index_factory IVF601,Flat cannot index 600 x 16: Number of training points (600)")
    assert "\n" not in message and ".cpp" not in message
    assert not list(tmp_path.iterdir())


def test_what_can_be_searched_passes(documents: np.ndarray, tmp_path: Path) -> None:
    for factory in ("Flat", *FACTORIES):
        SearchSettings(factory=factory).check(600, *documents.shape)
    SearchSettings(factory="PQ4x4", index_path=tmp_path / "is built here").check(600, *documents.shape)
    with pytest.raises(InputError, match="601 best of 600 documents"):
        SearchSettings(factory="PQ4x4").check(601, *documents.shape)
    with pytest.raises(InputError, match="no such file or folder"):
        SearchSettings(factory="Flat", index_path=tmp_path / "is not built here").check(10, *documents.shape)


# An index that finds fewer than it is asked for


def test_where_fewer_are_found_there_is_minus_one(documents: np.ndarray, queries: np.ndarray) -> None:
    expected_scores, expected_rows = faiss_index(documents, "IVF8,Flat").search(queries, 200)
    scores, rows = open_index(documents, "IVF8,Flat").search(queries, 200)
    exact = queries @ documents.T
    for query in range(len(queries)):
        found = int((expected_rows[query] >= 0).sum())
        assert 0 < found < 200
        assert set(rows[query, :found]) == set(expected_rows[query, :found])
        assert (rows[query, found:] == -1).all()
        np.testing.assert_allclose(scores[query, :found], exact[query, rows[query, :found]], rtol=1e-4, atol=1e-5)
        assert (np.diff(scores[query]) <= 0).all()


def test_adore_does_not_list_what_was_not_found() -> None:
    retrieved = np.array([[5, 3, -1, -1], [-1, -1, -1, -1], [4, 0, 2, -1], [6, -1, -1, -1]])
    candidates = Candidates(retrieved, [[3], [7, 9], [0], [0]])
    assert candidates.rows.tolist() == [
        [5, 3, 0, 0, 0, 0],
        [0, 0, 0, 0, 7, 9],
        [4, 0, 2, 0, 0, 0],
        [6, 0, 0, 0, 0, 0],
    ]
    assert candidates.listed.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 0],
    ]
    # Row 0 is relevant to the last two: found by the one, put behind the list of the other.
    assert candidates.relevant.astype(int).tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]
    mrr, recall = measure_retrieval(retrieved, [[3], [7, 9], [0], [0]])
    assert mrr == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4)
    assert recall == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_how_many_queries_get_fewer_is_said_once(
    documents: np.ndarray, queries: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "the index finds fewer than 200 documents for 9 of 9 queries; "
    sentence += "a greater --nprobe finds more"
    caplog.set_level("WARNING", "drhard")
    index = open_index(documents, "IVF8,Flat")
    for scores, _ in index.passes(queries, 200):
        assert len(scores) == 9
    assert caplog.messages == [sentence]
    caplog.clear()
    other = open_index(documents, "IVF8,Flat")
    for _ in range(3):  # as ADORE's steps
        other.search(queries, 200)
    assert caplog.messages == [sentence]
    caplog.clear()
    for index, k in ((open_index(documents, "IVF8,Flat", nprobe=8), 200), (open_index(documents, "SQ8"), 600)):
        index.search(queries, k)
        assert len(list(index.passes(queries, k))) == 1
    assert not caplog.messages


def test_passes_are_the_search(documents: np.ndarray, queries: np.ndarray) -> None:
    index = FaissIndex(build(documents, "SQ8"), results_at_once=40)
    parts = list(index.passes(queries, 10))
    assert [len(rows) for _, rows in parts] == [4, 4, 1]
    for found, expected in zip(zip(*parts, strict=True), index.search(queries, 10), strict=True):
        np.testing.assert_array_equal(np.concatenate(found), expected)


# Parameters of the search


def test_more_probes_find_more(documents: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    exact = open_index(documents, "Flat").search(queries, 20)[1]
    for path in (None, tmp_path / "ivf.index", tmp_path / "ivf.index"):  # the last is read
        found = open_index(documents, "IVF8,Flat", path, nprobe=8).search(queries, 20)[1]
        np.testing.assert_array_equal(found, exact)
        assert not np.array_equal(open_index(documents, "IVF8,Flat", path).search(queries, 20)[1], exact)


def test_a_wider_search_of_a_graph_finds_more(documents: np.ndarray, queries: np.ndarray) -> None:
    exact = open_index(documents, "Flat").search(queries, 20)[1]
    wide, narrow = (open_index(documents, "HNSW8", ef_search=ef).search(queries, 20)[1] for ef in (600, 20))
    assert (wide == exact).mean() > (narrow == exact).mean()


@pytest.mark.parametrize(
    "factory, parameters, complaint",
    [
        ("Flat", {"nprobe": 3}, "--nprobe and --ef_search need a compressed index; give --index_factory too"),
        ("SQ8", {"nprobe": 3}, "--index_factory SQ8: this index does not use --nprobe; omit it"),
        ("IVF8,Flat", {"ef_search": 3}, "--index_factory IVF8,Flat: this index does not use --ef_search"),
    ],
)
def test_parameters_that_an_index_does_not_have(
    documents: np.ndarray, factory: str, parameters: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        SearchSettings(factory=factory, **parameters).check(10, *documents.shape)


def test_a_file_that_does_not_have_a_parameter(documents: np.ndarray, tmp_path: Path) -> None:
    open_index(documents, "SQ8", tmp_path / "an.index")
    with pytest.raises(InputError, match="an.index: this index does not use --nprobe"):
        open_index(documents, "Flat", tmp_path / "an.index", nprobe=2)


def test_what_decides_what_is_found(documents: np.ndarray, tmp_path: Path) -> None:
    assert SearchSettings().outcome() == "Flat"
    assert SearchSettings(factory="IVF8,Flat", nprobe=3, memory_gb=9).outcome() == "IVF8,Flat nprobe 3"
    path = tmp_path / "an.index"
    open_index(documents, "SQ8", path)
    assert SearchSettings(index_path=path).outcome() == digest_file(path)


# Two at once


def test_an_index_is_built_by_one_process(documents: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "an.index"
    with write_whole_file(path) as file:
        with pytest.raises(InputError, match="an.index: another process is writing it"):
            open_index(documents, "SQ8", path)
        assert not path.with_name("an.index.json").exists()
        file.write(b"x")


# The scripts


DOCUMENTS, QUERIES = 40, 8


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    for mode in ("train", "dev"):
        write_collection(folder / "preprocess", DOCUMENTS, QUERIES, mode)
    save_tiny(folder / "init")
    vectors = np.random.default_rng(0).normal(size=(DOCUMENTS, DIM)).astype(np.float32)
    vectors.tofile(folder / "vectors.memmap")
    return folder


def train(collection: Path, folder: Path, *more: object) -> list[object]:
    return [
        "--metric_cut",
        10,
        "--neg_topk",
        20,
        "--init_path",
        collection / "init",
        "--pembed_path",
        collection / "vectors.memmap",
        "--model_save_dir",
        folder / "models",
        "--log_dir",
        folder / "log",
        "--preprocess_dir",
        collection / "preprocess",
        "--per_gpu_batch_size",
        4,
        "--num_train_epochs",
        1,
        "--warmup_steps",
        0,
        "--learning_rate",
        1e-3,
        *more,
    ]


def infer(collection: Path, folder: Path, *more: object) -> list[object]:
    return [
        "--model_dir",
        collection / "init",
        "--output_dir",
        folder,
        "--preprocess_dir",
        collection / "preprocess",
        "--mode",
        "dev",
        "--topk",
        20,
        "--dmemmap_path",
        collection / "vectors.memmap",
        "--no_cuda",
        *more,
    ]


def weights(folder: Path) -> np.ndarray:
    found = load_file(folder / "model.safetensors")
    return np.concatenate([found[name].ravel() for name in sorted(found)])


@pytest.mark.parametrize("factory", ["PQ4x4", "IVF8,Flat"])
def test_adore_trains_against_a_compressed_index(collection: Path, tmp_path: Path, factory: str) -> None:
    """With IVF8,Flat fewer than 20 of the 40 are found; the loss still knows the vectors themselves."""
    call_script("adore/train.py", *train(collection, tmp_path / "one", "--index_factory", factory))
    call_script("adore/train.py", *train(collection, tmp_path / "exact"))
    one, exact, begun = (
        weights(folder)
        for folder in (tmp_path / "one/models/epoch-1", tmp_path / "exact/models/epoch-1", collection / "init")
    )
    assert np.isfinite(one).all()
    assert not np.array_equal(one, begun)
    assert not np.array_equal(one, exact)


def test_adore_against_all_cells_is_the_exact_training(collection: Path, tmp_path: Path) -> None:
    """An index from a file that finds everything gives the weights of the exact search."""
    vectors = np.fromfile(collection / "vectors.memmap", dtype=np.float32).reshape(DOCUMENTS, DIM)
    index = faiss_index(vectors, "IVF8,Flat")
    index.nprobe = 8
    faiss.write_index(index, str(tmp_path / "all.index"))
    call_script("adore/train.py", *train(collection, tmp_path / "one", "--index_path", tmp_path / "all.index"))
    call_script("adore/train.py", *train(collection, tmp_path / "exact"))
    np.testing.assert_allclose(
        weights(tmp_path / "one/models/epoch-1"), weights(tmp_path / "exact/models/epoch-1"), rtol=1e-5, atol=1e-7
    )


def test_adore_goes_on_with_the_same_index_only(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_script("adore/train.py", *train(collection, tmp_path, "--index_factory", "PQ4x4"))
    trained = weights(tmp_path / "models/epoch-1")
    call_script("adore/train.py", *train(collection, tmp_path, "--index_factory", "PQ4x4"))
    for more in (["--index_factory", "IVF4,Flat"], []):
        message = refused("adore/train.py", *train(collection, tmp_path, *more), capsys=capsys)
        assert "begun with index PQ4x4, not " in message
    kept = ("--index_factory", "PQ4x4", "--index_path", tmp_path / "an.index")
    message = refused("adore/train.py", *train(collection, tmp_path, *kept), capsys=capsys)
    assert f"begun with index PQ4x4, not {digest_file(tmp_path / 'an.index')}" in message
    np.testing.assert_array_equal(weights(tmp_path / "models/epoch-1"), trained)


def test_adore_retrieves_from_a_compressed_index(collection: Path, tmp_path: Path) -> None:
    """Built by a process, read by another command; the run is what faiss finds for the query vectors."""
    path = tmp_path / "ivf.index"
    result = run_script(
        "adore/inference.py",
        *infer(collection, tmp_path / "one", "--index_factory", "IVF8,Flat", "--index_path", path),
    )
    assert result.returncode == 0, result.stderr
    call_script("adore/inference.py", *infer(collection, tmp_path / "two", "--index_path", path))
    for name in ("dev.rank.tsv", "dev.score.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    embedded = np.fromfile(tmp_path / "one/dev.qembed.memmap", dtype=np.float32).reshape(QUERIES, DIM)
    scores, rows = faiss.read_index(str(path)).search(embedded, 20)
    assert (rows == -1).any()
    assert {query: rows for query, rows, *_ in read_run(tmp_path / "one/dev.rank.tsv")} == {
        query: [row for row in found if row >= 0] for query, found in enumerate(rows.tolist())
    }
    np.testing.assert_allclose(np.load(tmp_path / "one/dev.score.npy"), scores, rtol=1e-5)


@pytest.mark.parametrize("script, arguments", [("adore/train.py", train), ("adore/inference.py", infer)])
def test_scripts_refuse_an_index_before_the_long_work(
    collection: Path, tmp_path: Path, script: str, arguments: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, complaint in (
        (["--index_factory", "nonsense"], r"--index_factory nonsense: faiss has no such index .*nonsense"),
        (["--index_factory", "PQ5x4"], r"--index_factory PQ5x4: .*multiple"),
        (["--index_path", tmp_path / "none.index"], r"none\.index: no such file or folder"),
    ):
        message = refused(script, *arguments(collection, tmp_path / "out", *more), capsys=capsys)
        assert re.search(complaint, message), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "factory, kind",
    [("OPQ2,IVF1,PQ2", "IndexIVFPQ"), ("IVF4,Flat", "IndexIVFFlat"), ("OPQ2,PQ2", None), ("HNSW4", None)],
)
def test_what_gpus_do_not_know_is_refused(factory: str, kind: str | None) -> None:
    index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    if kind:
        assert check_kind(index, factory) == kind
    else:
        with pytest.raises(InputError, match="faiss does not have this index .* on GPUs; use one such as"):
            check_kind(index, factory)
