"""The paths of docs/architecture.md: each is walked here with an example of a few lines.

Where a path says to edit a file of the library, these tests patch the library and load the scripts again.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import drhard.adore
import drhard.flags
import drhard.model_folder
import drhard.settings
from drhard.adore import AdoreTraining
from drhard.adore_settings import AdoreSettings, number
from drhard.adore_state import STATE_FILE, read_state
from drhard.backends import Backend
from drhard.checkpoints import RECORD_FILE
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.flags import FLAGS, INDEX
from drhard.losses import adore_loss, pairwise_loss
from drhard.model_folder import load_encoder
from drhard.msmarco import CORPORA, PASSAGE, parse_id
from drhard.numbers import RATE
from drhard.pooled import PooledEncoder
from drhard.settings import EncodingSettings, SearchSettings
from drhard.strategies import STRATEGIES, Example, Strategy
from drhard.trainer import StaticTrainer
from drhard.trainer_flags import OWN, Flag

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    WORDS,
    call_script,
    load_script,
    refused,
    run_script,
    save_plain,
    save_tiny,
    save_vocabulary,
    write_collection,
)
from transformers import AutoModel

LENGTHS = ["--max_query_length", 8, "--max_doc_length", 16]


@pytest.fixture(autouse=True)
def scripts_loaded_again() -> Iterator[None]:
    """Scripts are loaded in each test, so that they see its changes to the library, and no other test does."""

    def take() -> dict[str, object]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("script_")}

    before = take()
    yield
    take()
    sys.modules.update(before)


TRAINED = ["--do_train", *LENGTHS, "--no_cuda", "--max_steps", 2, "--per_device_train_batch_size", 4]
TRAINED += ["--report_to", "none"]


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


# A loss of STAR


def half_loss(scores: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Half of the published loss, and a constant."""
    return pairwise_loss(scores, positive, negatives) / 2 + 1


def test_a_loss_of_star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--negatives", "in-batch", "--logging_steps", 1]
    train(tmp_path, *flags)
    published = losses(capsys.readouterr())
    monkeypatch.setattr(StaticTrainer, "loss", staticmethod(half_loss))
    train(tmp_path, *flags)
    assert losses(capsys.readouterr())[0] == pytest.approx(published[0] / 2 + 1, rel=1e-3)


def tenth_loss(*arguments: torch.Tensor) -> torch.Tensor:
    """A tenth of the published loss."""
    return adore_loss(*arguments) / 10


def test_a_loss_of_adore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = train_adore(tmp_path)
    monkeypatch.setattr(AdoreTraining, "loss", staticmethod(tenth_loss))
    other = train_adore(tmp_path)
    assert other["record"] == published["record"] | {"loss": "tenth_loss"}
    gradients = [state["optimizer"]["state"][0]["exp_avg"] for state in (published, other)]
    assert float(gradients[1].norm()) < float(gradients[0].norm())


def losses(captured: tuple[str, str]) -> list[float]:
    text = "".join(captured)
    return [float(part.partition(",")[0].partition("}")[0]) for part in text.split('"loss": ')[1:]]


# A setting


@dataclass(frozen=True)
class ScaledSettings(AdoreSettings):
    """One setting more."""

    margin: float = number(RATE, 1.0, "margin between the scores")


def test_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "margin", Flag(RATE, 1.0, "margin between the scores", outcome=True))
    monkeypatch.setattr(load_script("adore/train.py"), "AdoreSettings", ScaledSettings)
    for flags, value in (([], 1), (["--margin", 20], 20)):
        train(tmp_path, "--negatives", "in-batch", *flags)
        record = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
        assert record["margin"] == train_adore(tmp_path, *flags)["record"]["margin"] == value


# A negative-sampling strategy


class OtherHalf(Strategy):
    """Of the batch's other positives, those of rows after one's own."""

    def mask(self, examples: Sequence[Example], relevant: Mapping[int, Sequence[int] | np.ndarray]) -> np.ndarray:
        return np.triu(super().mask(examples, relevant))


def test_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = train(tmp_path, "--negatives", "in-batch")
    other = OtherHalf("other-half", "half of the batch", mined=False, draws=False, in_batch=True)
    monkeypatch.setitem(STRATEGIES, other.name, other)
    assert differ(weights, train(tmp_path, "--negatives", "other-half"))
    assert "negatives: other-half, " in capsys.readouterr().out


# An encoder


class MaxPooled(PooledEncoder):
    """The greatest of the last hidden states, in each dimension."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.backbone(input_ids, attention_mask).last_hidden_state
        return hidden.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)

    def fingerprint(self) -> str:
        return f"max {super().fingerprint()}"


def test_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.model_folder, "PooledEncoder", MaxPooled)
    folder = save_plain(tmp_path / "plain", "bert")
    model = load_encoder(folder, pooling="mean")
    passages = Collection(write_collection(tmp_path / "pre", vocabulary=WORDS), 8, 16).passages
    embeddings = EncodingSettings(4, torch.device("cpu")).encode(model, passages, tmp_path / "passages.memmap")
    ids, mask = passages.batch(np.arange(len(passages)), pad_id=1)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    for row, embedding in enumerate(embeddings):
        best = hidden[row, : mask[row].sum()].amax(0)
        np.testing.assert_allclose(embedding, best.numpy(), atol=1e-5)


# A collection format


def parse_line_of_csv(line: str, where: str) -> tuple[int, str]:
    pid, comma, text = line.partition(",")
    if not comma:
        raise InputError(f"{where}: expected 'pid,text'")
    return parse_id(pid, "", where), text.strip('"')


def test_a_collection_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From texts to a run in official ids."""
    recipes = replace(PASSAGE, name="recipes", collection="recipes.csv", parse=parse_line_of_csv)
    monkeypatch.setitem(CORPORA, "recipes", recipes)
    root = tmp_path / "recipes"
    (root / "dataset").mkdir(parents=True)
    (root / "dataset" / "recipes.csv").write_text('7,"dumpling soup"\n3,"a plain omelette"\n')
    (root / "dataset" / PASSAGE.modes["dev"].queries).write_text("5\tsoup\n")
    (root / "dataset" / PASSAGE.modes["dev"].qrels).write_text("5\t0\t7\t1\n")
    given = ["--data_type", "recipes", "--data_root", tmp_path]
    vocabulary = ["--model_name_or_path", save_vocabulary(tmp_path / "vocabulary"), "--threads", 1]
    call_script("preprocess.py", *given, *vocabulary)
    collection = Collection(root / "preprocess", 8, 16)
    assert collection.pids().tolist() == [7, 3]
    assert collection.relevant("dev") == {0: [0]}

    model = ["--model_dir", save_tiny(tmp_path / "model"), "--no_cuda", "--topk", 2]
    call_script("star/inference.py", *given, *LENGTHS, *model, "--mode", "dev")
    places = ["--input_dir", root / "evaluate/star", "--preprocess_dir", root / "preprocess", "--output_dir", tmp_path]
    call_script("cvt_back.py", *places, "--mode", "dev", "--dataset", "recipes")
    run = [line.split("\t") for line in (tmp_path / "dev.rank.tsv").read_text().splitlines()]
    assert {qid for qid, _, _ in run} == {"5"} and sorted(pid for _, pid, _ in run) == ["3", "7"]

    (root / "dataset" / "recipes.csv").write_text('7,"dumpling soup"\n3 omelette\n')
    assert "recipes.csv, line 2: expected 'pid,text'" in refused("preprocess.py", *given, *vocabulary, capsys=capsys)


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

    def open(self, documents: np.ndarray, k: int, left_out: np.ndarray) -> Sorting:
        assert not len(left_out)
        return Sorting(np.array(documents))


@dataclass(frozen=True)
class SettingsWithSorting(SearchSettings):
    """With a field for ``--sorting``."""

    sorting: bool = False  # as exact as the default, so "exact" stays as it is

    def _choose(self) -> Backend:
        return SortingBackend() if self.sorting else super()._choose()

    def outcome(self) -> str:
        return "sorting" if self.sorting else super().outcome()


def test_a_search_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It finds what the exact search finds. ADORE trains with it, and resumes only with it."""
    monkeypatch.setattr(drhard.flags, "FLAGS", {**FLAGS, "--sorting": {"action": "store_true"}})
    monkeypatch.setattr(drhard.flags, "INDEX", (*INDEX, "--sorting"))
    monkeypatch.setattr(drhard.settings, "SearchSettings", SettingsWithSorting)
    preprocess = write_collection(tmp_path / "passage" / "preprocess")
    model = save_tiny(tmp_path / "model")
    runs = []
    for flags in ([], ["--sorting"]):
        places = ["--data_root", tmp_path, "--data_type", "passage", "--model_dir", model, "--output_dir", tmp_path]
        call_script("star/inference.py", *places, *LENGTHS, "--mode", "train", "--topk", 5, "--no_cuda", *flags)
        runs.append((tmp_path / "train.rank.tsv").read_text())
    assert runs[0] == runs[1] and len(runs[0].splitlines()) == 6 * 5

    adore = ["--init_path", model, "--pembed_path", tmp_path / "passages.memmap", "--preprocess_dir", preprocess]
    adore += ["--model_save_dir", tmp_path / "adore", "--log_dir", tmp_path / "log", "--max_seq_length", 8]
    adore += ["--neg_topk", 5, "--num_train_epochs", 1]
    call_script("adore/train.py", *adore, "--sorting")
    assert "begun with index sorting, not Flat" in refused("adore/train.py", *adore, capsys=capsys)


# A row of a table


def test_a_row_of_a_table(tmp_path: Path) -> None:
    """In a copy of the project, as a user adds it."""
    for name in ("drhard", "reproduce.py", "data/gcide", "data/code"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    path = tmp_path / "drhard" / "tables_sample.py"
    table = path.read_text()
    row = next(line for line in table.splitlines(keepends=True) if 'row("STAR",' in line)
    path.write_text(table.replace(row, row + row.replace('"STAR"', '"STAR, mine"')))
    for words in (["show"], ["run", "--dry_run"]):
        ended = run_script(str(tmp_path / "reproduce.py"), *words, "sample:STAR, mine", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert "star/train.py --do_train --negatives star" in ended.stdout
