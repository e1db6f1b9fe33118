"""The reference outputs, and the scripts run on their input, once for all tests."""

import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

from drhard.devices import limit_threads

import pytest
import torch
from helpers import ROOT, must_run
from hypothesis import settings

limit_threads(1)  # the models are tiny, and pytest runs as many processes as there are cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: the scripts would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machines", deadline=None)  # a test is not wrong because it is slow
settings.load_profile("shared machines")

KINDS = {  # of tests, by file: the mark that each test in it gets
    "parity": ("parity",),
    "pipeline": (
        "bad_input",
        "benchmarks",
        "campaigns",
        "code_search",
        "extension",
        "full_size",
        "gcide",
        "gpu",
        "mining",
        "own_collection",
        "processes",
        "reproduce",
        "resume",
        "sample",
        "search",
        "setup",
        "startup",
        "validation",
        "walkthrough",
        "your_retriever",
    ),
    "unit": (
        "architecture",
        "backends",
        "bm25",
        "changes",
        "codes",
        "commands",
        "cores",
        "compressed",
        "devices",
        "documentation",
        "download",
        "embeddings",
        "encoder",
        "exact",
        "exports",
        "faiss_index",
        "files",
        "growth",
        "hard_json",
        "hub",
        "import_fuzz",
        "importing",
        "index",
        "known_queries",
        "lamb",
        "losses",
        "metrics",
        "model_folder",
        "model_tokenizer",
        "msmarco",
        "negatives",
        "numbers",
        "passage_texts",
        "prefetch",
        "preprocessing",
        "published_runs",
        "qrels",
        "results",
        "retrieval",
        "runs",
        "sampling",
        "shards",
        "search_app",
        "settings",
        "significance",
        "tokenizer",
        "tokens",
        "topk",
        "trainer_flags",
        "trec_eval",
        "waiting",
        "words",
        "workers",
    ),
}
CORPUS_FLAGS = {"passage": ("1", "256"), "doc": ("0", "512")}  # --data_type of preprocess.py, --max_doc_length


@pytest.fixture(autouse=True, scope="module")
def measure_no_coverage_of_benchmarks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Benchmarks and campaigns start scripts that other tests cover. Coverage would double their time."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.name in ("test_benchmarks.py", "test_campaigns.py"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(ROOT / "tests" / "data" / f"{name}.tar.xz") as archive:
        # The members as they are: Python 3.11.2, Debian 12's, knows no filter yet, and Python 3.12 warns without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder / name


@pytest.fixture(scope="session")
def tokenizer_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with RoBERTa's vocabulary and strings with the ids that they must give."""
    return unpack("tokenizer", tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what the published code makes of the reference input; not to be written to."""
    return unpack("expected", tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the reference input, preprocess.py run on both collections."""
    directory = unpack("input", tmp_path_factory.mktemp("pipeline"))
    for data_type, _ in CORPUS_FLAGS.values():
        must_run("preprocess.py", "--data_type", data_type, "--model_name_or_path", "./base", cwd=directory)
    return directory


@pytest.fixture(scope="session")
def star_inferred(preprocessed: Path) -> Path:
    """The same directory after star/inference.py in all modes."""
    for corpus, (_, length) in CORPUS_FLAGS.items():
        for mode in ("dev", "test", "lead", "train"):
            must_run(
                "star/inference.py",
                "--data_type",
                corpus,
                "--max_doc_length",
                length,
                "--mode",
                mode,
                cwd=preprocessed,
            )
    return preprocessed


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its kind. Leave out what needs a GPU where there is none."""
    kind_of = {f"test_{name}": kind for kind, names in KINDS.items() for name in names}
    for item in items:
        if kind := kind_of.get(item.path.stem):
            item.add_marker(kind)
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in gpu]
    config.hook.pytest_deselected(items=gpu)
