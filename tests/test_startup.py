"""Flags and names are checked before the heavy libraries are imported, so that a mistake is told at once."""

from pathlib import Path

import pytest
from helpers import run_without

HEAVY = ("torch", "transformers", "faiss", "scipy", "tensorboard", "accelerate", "bm25s", "pandas", "pyarrow")
SCRIPTS = (
    "import_collection.py",
    "preprocess.py",
    "star/prepare_hardneg.py",
    "star/train.py",
    "star/inference.py",
    "adore/train.py",
    "adore/inference.py",
    "msmarco_eval.py",
    "trec_eval.py",
    "cvt_back.py",
    "download_data.py",
    "reproduce.py",
    "search.py",
)
NOWHERE = (
    "import_collection.py nowhere --data_root out",
    "preprocess.py --data_root nowhere --model_name_or_path ./nowhere",
    "star/prepare_hardneg.py --data_root nowhere --data_type passage --mode train",
    "star/prepare_hardneg.py --data_root nowhere --data_type passage --mode train --retriever bm25",
    "star/train.py --do_train --max_query_length 8 --max_doc_length 8 --preprocess_dir nowhere --init_path nowhere",
    "star/inference.py --data_root nowhere --data_type passage --mode dev",
    "adore/train.py --init_path nowhere --pembed_path nowhere --model_save_dir out --log_dir out "
    "--preprocess_dir nowhere",
    "adore/inference.py --model_dir nowhere --output_dir out --preprocess_dir nowhere --dmemmap_path nowhere "
    "--mode dev",
    "msmarco_eval.py nowhere nowhere",
    "trec_eval.py nowhere nowhere",
    "cvt_back.py --input_dir nowhere --preprocess_dir nowhere --output_dir out --mode dev --dataset passage",
    "download_data.py --manifest nowhere",
    "reproduce.py run nowhere",
    "search.py --data_root nowhere",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_flags_come_first(tmp_path: Path, script: str) -> None:
    helped = run_without(HEAVY, script, "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: ")
    wrong = run_without(HEAVY, script, "--no_such_flag", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr and "error: " in wrong.stderr


@pytest.mark.parametrize("command", NOWHERE)
def test_what_is_missing_is_told_first(tmp_path: Path, command: str) -> None:
    ended = run_without(HEAVY, *command.split(), cwd=tmp_path)
    assert ended.returncode == 2
    assert "error: " in ended.stderr and "nowhere" in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("out/*"))
