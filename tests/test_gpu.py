"""What runs on a GPU gives what runs on the CPU; left out where there is none."""

from pathlib import Path

import drhard.shards
from drhard.exact import ExactIndex
from drhard.shards import open_shards

import numpy as np
import pytest
import torch
from helpers import must_run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("held", ["codes", "embeddings", "both"])
@pytest.mark.parametrize("shards", [1, 2])
def test_search_on_the_gpu_equals_the_cpu(monkeypatch: pytest.MonkeyPatch, shards: int, held: str) -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((200_000, 96), dtype=np.float32)
    documents[7] = documents[100_007]
    queries = random.standard_normal((1500, 96), dtype=np.float32)
    if held == "codes":
        room = drhard.shards.SCRATCH + documents.nbytes // shards // 2
        monkeypatch.setattr(drhard.shards, "free_bytes", lambda _: room)
    if held == "embeddings":
        monkeypatch.setattr(drhard.shards, "FEW_QUERIES", len(queries))
    index = open_shards(documents, [torch.device("cuda", 0)] * shards)
    scores, rows = index.search(queries, 100)
    exact_scores, exact_rows = ExactIndex(documents).search(queries, 100)
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-4)
    assert (rows == exact_rows).mean() > 0.999  # near ties may stand in another order
    gathered = index.gather(rows[:10], torch.device("cuda", 0))
    if held == "codes":
        assert gathered is None
    else:
        np.testing.assert_array_equal(gathered.cpu().numpy(), documents[rows[:10]])


def test_star_inference_on_the_gpu_equals_the_cpu(preprocessed: Path, tmp_path: Path) -> None:
    flags = ["--data_type", "passage", "--max_doc_length", "256", "--mode", "dev"]
    for device, more in (("gpu", []), ("cpu", ["--no_cuda"])):
        must_run("star/inference.py", *flags, *more, "--output_dir", tmp_path / device, cwd=preprocessed)
    for name in ("passages", "dev-query"):
        on_gpu, on_cpu = (
            np.fromfile(tmp_path / device / f"{name}.memmap", dtype=np.float32) for device in ("gpu", "cpu")
        )
        assert np.abs(on_gpu - on_cpu).max() <= 1e-4 * np.abs(on_cpu).max()


def test_half_precision_on_the_gpu_is_near(preprocessed: Path, tmp_path: Path) -> None:
    flags = ["--data_type", "passage", "--max_doc_length", "256", "--mode", "dev"]
    for precision in ("", "--fp16", "--bf16"):
        more = [precision] if precision else []
        must_run("star/inference.py", *flags, *more, "--output_dir", tmp_path / f"out{precision}", cwd=preprocessed)
    exact, *halves = (
        np.fromfile(tmp_path / f"out{precision}" / "passages.memmap", dtype=np.float32)
        for precision in ("", "--fp16", "--bf16")
    )
    for half, distance in zip(halves, (0.02, 0.1), strict=True):
        assert not np.array_equal(half, exact)
        assert np.abs(half - exact).mean() < distance * np.abs(exact).mean()


STAR = """
    --do_train --max_query_length 24 --max_doc_length 120 --preprocess_dir ./data/passage/preprocess
    --hardneg_path ./data/passage/warmup_retrieve/hard1.json --init_path ./data/passage/warmup
    --per_device_train_batch_size 32 --max_steps 2 --fp16
"""
ADORE = """
    --metric_cut 60 --neg_topk 60 --num_train_epochs 1 --init_path ./data/passage/trained_models/star
    --preprocess_dir ./data/passage/preprocess --faiss_gpu_index 0
"""


def test_training_on_the_gpu(preprocessed: Path, tmp_path: Path) -> None:
    star = ["--output_dir", tmp_path / "star", "--logging_dir", tmp_path / "log"]
    must_run("star/train.py", *STAR.split(), *star, cwd=preprocessed)
    flags = ["--data_type", "passage", "--mode", "train", "--max_doc_length", "256"]
    must_run("star/inference.py", *flags, "--output_dir", tmp_path / "evaluate", cwd=preprocessed)
    adore = ["--pembed_path", tmp_path / "evaluate" / "passages.memmap"]
    adore += ["--model_save_dir", tmp_path / "adore", "--log_dir", tmp_path / "adore-log"]
    must_run("adore/train.py", *ADORE.split(), *adore, cwd=preprocessed)
    assert (tmp_path / "adore" / "epoch-1" / "config.json").exists()
