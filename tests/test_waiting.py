"""Encoding and training read no number from the device in a batch or step: each would make Python wait for a GPU."""

from pathlib import Path
from typing import Any

from drhard.adore import AdoreInput, AdoreTraining
from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.collection import Collection
from drhard.encoder import model_inputs
from drhard.model_folder import load_encoder
from drhard.tokens import TokenMemmap
from drhard.trainer import StaticTrainer

import numpy as np
import pytest
import torch
from helpers import (
    KINDS,
    call_script,
    open_tokens,
    random_sequences,
    save_plain,
    save_tiny,
    tiny_model,
    write_collection,
)
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors: by ``item``, ``bool`` or ``int``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tokens(tmp_path: Path) -> TokenMemmap:
    return open_tokens(tmp_path, random_sequences(6, 9, seed=0, vocabulary=60) + [[5] * 9] * 3, 12)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_need_no_mask_and_do_not_ask_the_device_for_padding(
    tmp_path: Path, tokens: TokenMemmap, kind: str, pooling: str
) -> None:
    model = load_encoder(save_plain(tmp_path / "plain", kind), pooling=pooling)
    ids, mask = tokens.batch(np.arange(9), model.config.pad_token_id)
    padded = model_inputs(ids, mask, torch.device("cpu"))
    whole = model_inputs(ids[6:], mask[6:], torch.device("cpu"))
    assert padded[1] is not None
    assert whole[1] is None
    with torch.no_grad(), Reads() as reads:
        together, alone = model(*padded), model(*whole)
    assert reads.count == 0 or kind == "modernbert"
    torch.testing.assert_close(together[6:], alone, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(whole[0], torch.ones_like(whole[0])), alone, rtol=1e-5, atol=1e-5)
        # As transformers itself reads the mask.
        model.spread = lambda attention_mask: attention_mask
        torch.testing.assert_close(model(*padded), together, rtol=0, atol=0)


@pytest.mark.parametrize("flags", [(), ("--padding",), ("--chunk_size", 2), ("--gradient_accumulation_steps", 2)])
def test_a_step_of_star_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...]
) -> None:
    taken = []
    step = StaticTrainer.training_step

    def counted(self: StaticTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        with Reads() as reads:
            loss = step(self, *arguments, **options)
        taken.append(reads.count)
        return loss

    monkeypatch.setattr(StaticTrainer, "training_step", counted)
    preprocess, init = write_collection(tmp_path / "preprocess"), save_tiny(tmp_path / "init")
    places = ["--preprocess_dir", preprocess, "--init_path", init, "--output_dir", tmp_path / "out"]
    numbers = ["--max_query_length", 6, "--max_doc_length", 10, "--per_device_train_batch_size", 2, "--max_steps", 3]
    numbers += ["--report_to", "none"]
    call_script("star/train.py", "--do_train", "--negatives", "random", *places, *numbers, "--no_cuda", *flags)
    assert len(taken) >= 3
    assert not any(taken)


class Sorting:
    """An index without torch."""

    def __init__(self, documents: np.ndarray):
        self.documents = documents

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.documents.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1), rows


def test_a_step_of_adore_reads_nothing_but_the_query_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # reads its count of steps, which is on the CPU
    documents = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    collection = Collection(write_collection(tmp_path / "preprocess", 30, 10), 8)
    relevant = {row: [row, row + 10] for row in range(10)}
    data = AdoreInput(collection, relevant, documents, Sorting(documents), "sorting")
    output = AdoreOutput(tmp_path / "models", tmp_path / "log", tmp_path)
    settings = AdoreSettings(neg_topk=5, per_gpu_batch_size=5, num_train_epochs=1, warmup_steps=0)
    training = AdoreTraining(tiny_model(), data, settings, output)
    with Reads() as reads:
        values = training._train_step(np.arange(5))
    assert reads.count == 1  # whether the query vectors, which are on the host by then, are finite
    assert isinstance(values["loss"], torch.Tensor)
