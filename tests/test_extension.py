"""The written paths of docs/architecture.md: each is walked here, by a plug-in of a few lines."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import drhard.adore
import drhard.encoder
import drhard.static
from drhard.adore import AdoreTraining
from drhard.adore_settings import AdoreSettings, number
from drhard.adore_state import STATE_FILE, read_state
from drhard.checkpoints import RECORD_FILE
from drhard.collection import Collection
from drhard.encoder import RobertaDot, load_encoder
from drhard.losses import adore_loss, pairwise_loss
from drhard.msmarco import CORPORA, PASSAGE
from drhard.numbers import RATE
from drhard.preprocessing import Lengths, preprocess
from drhard.retrieval import Retriever
from drhard.settings import EncodingSettings, SearchSettings
from drhard.strategies import STRATEGIES, Example, Strategy
from drhard.tokenizer import RobertaTokenizer
from drhard.trainer import StaticTrainer
from drhard.trainer_flags import OWN, Flag

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    call_script,
    load_script,
    run_script,
    save_tiny,
    save_vocabulary,
    tiny_model,
    write_collection,
)

TRAINED = ["--do_train", "--max_query_length", 8, "--max_doc_length", 16, "--no_cuda", "--max_steps", 2]
TRAINED += ["--per_device_train_batch_size", 4, "--report_to", "none"]


def train(folder: Path, *flags: object) -> dict[str, torch.Tensor]:
    """Train two steps by star/train.py; the weights."""
    places = ["--output_dir", folder / "out", "--overwrite_output_dir"]
    call_script("star/train.py", *TRAINED, *given(folder), *places, *flags)
    return load_encoder(folder / "out").state_dict()


def train_adore(folder: Path, *flags: object) -> dict[str, object]:
    """Train an epoch by adore/train.py; the state."""
    shutil.rmtree(folder / "adore", ignore_errors=True)
    vectors = folder / "vectors.memmap"
    np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32).tofile(vectors)
    places = ["--pembed_path", vectors, "--model_save_dir", folder / "adore", "--log_dir", folder / "log"]
    numbers = ["--neg_topk", 5, "--num_train_epochs", 1, "--max_seq_length", 8]
    call_script("adore/train.py", *given(folder), *places, *numbers, *flags)
    return read_state(folder / "adore" / STATE_FILE)


def given(folder: Path) -> list[object]:
    """The flags of a collection and a model to start from."""
    if not (folder / "pre").exists():
        write_collection(folder / "pre")
        save_tiny(folder / "init")
    return ["--preprocess_dir", folder / "pre", "--init_path", folder / "init"]


def differ(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return any(not torch.equal(one[name], two[name]) for name in one)


# A loss


class MarginTrainer(StaticTrainer):
    """Trains with half of the published loss, and a constant."""

    @staticmethod
    def loss(scores: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        return pairwise_loss(scores, positive, negatives) / 2 + 1


def test_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--negatives", "in-batch", "--logging_steps", 1]
    train(tmp_path, *flags)
    published = losses(capsys.readouterr())
    monkeypatch.setattr(drhard.static, "StaticTrainer", MarginTrainer)
    train(tmp_path, *flags)
    assert losses(capsys.readouterr())[0] == pytest.approx(published[0] / 2 + 1, rel=1e-3)


class SmoothTraining(AdoreTraining):
    """Trains with a tenth of the published loss."""

    @staticmethod
    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        return adore_loss(*arguments) / 10


def test_a_loss_of_adore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = train_adore(tmp_path)
    monkeypatch.setattr(drhard.adore, "AdoreTraining", SmoothTraining)
    other = train_adore(tmp_path)
    assert other["record"] == published["record"] | {"loss": "SmoothTraining.loss"}
    gradients = [state["optimizer"]["state"][0]["exp_avg"] for state in (published, other)]
    assert float(gradients[1].norm()) < float(gradients[0].norm())


def losses(captured: tuple[str, str]) -> list[float]:
    text = "".join(captured)
    return [float(part.partition(",")[0].partition("}")[0]) for part in text.split('"loss": ')[1:]]


# A setting


@dataclass(frozen=True)
class ScaledSettings(AdoreSettings):
    """One setting more."""

    score_scale: float = number(RATE, 1.0, "factor of the scores")


def test_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "score_scale", Flag(RATE, 1.0, "factor of the scores", outcome=True))
    monkeypatch.setattr(load_script("adore/train.py"), "AdoreSettings", ScaledSettings)
    for flags, value in (([], 1), (["--score_scale", 20], 20)):
        train(tmp_path, "--negatives", "in-batch", *flags)
        record = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
        assert record["score_scale"] == train_adore(tmp_path, *flags)["record"]["score_scale"] == value


# A negative-sampling strategy


class OtherHalf(Strategy):
    """Of the batch's other positives, those of rows after one's own."""

    def mask(self, examples: Sequence[Example], relevant: Mapping[int, Sequence[int] | np.ndarray]) -> np.ndarray:
        return np.triu(super().mask(examples, relevant))


def test_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = train(tmp_path, "--negatives", "in-batch")
    other = OtherHalf("other-half", "half of the batch", mined=False, draws=False, in_batch=True)
    monkeypatch.setitem(STRATEGIES, "in-batch", other)
    assert differ(weights, train(tmp_path, "--negatives", "in-batch"))


# An encoder


class MeanPooled(RobertaDot):
    """The mean of the last hidden states, without a head."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.roberta(input_ids, attention_mask, return_dict=True).last_hidden_state
        weights = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def test_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.encoder, "RobertaDot", MeanPooled)
    model = load_encoder(save_tiny(tmp_path / "mean"))
    passages = Collection(write_collection(tmp_path / "pre"), 8, 16).passages
    embeddings = EncodingSettings(4, torch.device("cpu")).encode(model, passages, tmp_path / "passages.memmap")
    ids, mask = passages.batch(np.arange(len(passages)), pad_id=1)
    with torch.no_grad():
        hidden = model.roberta(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    for row, embedding in enumerate(embeddings):
        mean = hidden[row, : mask[row].sum()].mean(0)
        np.testing.assert_allclose(embedding, mean.numpy(), atol=1e-5)


# A collection format


def parse_line_of_csv(line: str, where: str) -> tuple[int, str]:
    pid, _, text = line.rstrip("\n").partition(",")
    return int(pid), text.strip('"')


def test_a_collection_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = replace(PASSAGE, name="recipes", collection="recipes.csv", parse=parse_line_of_csv)
    monkeypatch.setitem(CORPORA, "recipes", recipes)
    dataset = tmp_path / "recipes" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "recipes.csv").write_text('7,"dumpling soup"\n3,"a plain omelette"\n')
    (dataset / PASSAGE.modes["dev"].queries).write_text("5\tsoup\n")
    (dataset / PASSAGE.modes["dev"].qrels).write_text("5\t0\t7\t1\n")
    tokenizer = RobertaTokenizer.from_pretrained(save_vocabulary(tmp_path / "vocabulary"), do_lower_case=True)
    preprocess(CORPORA["recipes"], tmp_path / "recipes", tokenizer, Lengths(16, 8, 100), workers=1)
    collection = Collection(tmp_path / "recipes" / "preprocess", 64, 512)
    assert collection.pids().tolist() == [7, 3]
    assert collection.relevant("dev") == {0: [0]}


# A search backend


@dataclass
class Sorting:
    """An index that sorts all scores."""

    documents: np.ndarray

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.documents.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1), rows

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.search(queries, k)


class SortingBackend:
    """Opens :class:`Sorting`."""

    def check(self, k: int, count: int, dim: int) -> None:
        assert k <= count

    def open(self, documents: np.ndarray, k: int) -> Sorting:
        return Sorting(np.array(documents))


def test_a_search_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection(write_collection(tmp_path / "pre"), 8, 16)
    retriever = Retriever(tiny_model(), EncodingSettings(4, torch.device("cpu")), SearchSettings())
    found = []
    for name in ("exact", "sorting"):
        with retriever.retrieve(collection, "train", tmp_path / name / "train.rank.tsv", 5) as results:
            found.append(np.array(results.rows))
        monkeypatch.setattr(SearchSettings, "_choose", lambda _: SortingBackend())
    np.testing.assert_array_equal(*found)


# A row of a table


def test_a_row_of_a_table(tmp_path: Path) -> None:
    """In a copy of the project, as a user adds it."""
    for name in ("drhard", "reproduce.py"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    path = tmp_path / "drhard" / "tables_sample.py"
    table = path.read_text()
    row = next(line for line in table.splitlines(keepends=True) if 'make_row("STAR",' in line)
    path.write_text(table.replace(row, row + row.replace('"STAR"', '"STAR, mine"')))
    ended = run_script(str(tmp_path / "reproduce.py"), "show", "sample:STAR, mine", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "star/train.py --do_train --negatives star" in ended.stdout
