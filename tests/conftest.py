"""The reference outputs, and the scripts run on their input, once for all tests."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent
CORPUS_FLAGS = {"passage": ("1", "256"), "doc": ("0", "512")}  # --data_type of preprocess.py, --max_doc_length


def run_script(script: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does, from another directory; return what it gave."""
    # One thread: the models are tiny, and waiting for a second core costs more than it brings.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def must_run(script: str, *arguments: str | Path, cwd: Path) -> str:
    """Run a script that has to end well; return what it printed."""
    result = run_script(script, *arguments, cwd=cwd)
    assert result.returncode == 0, f"{script} {arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(PROJECT / "tests" / "data" / f"{name}.tar.xz") as archive:
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
    """The same directory after star/inference.py on all splits."""
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in gpu]
    config.hook.pytest_deselected(items=gpu)
