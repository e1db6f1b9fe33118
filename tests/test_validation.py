"""Trainings that measure their model: the values, the best model, early stopping, and that nothing else changes."""

import json
import signal
from argparse import Namespace
from pathlib import Path

from drhard.adore import AdoreTraining
from drhard.adore_state import STATE_FILE, read_state
from drhard.checkpoints import RECORD_FILE
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.metrics import measure_run, parse_measures
from drhard.qrels import read_grades
from drhard.retrieval import Retriever
from drhard.runs import write_run
from drhard.trainer import StaticTrainer
from drhard.validation import BEST_FOLDER, EVALUATION_FILE, Evaluation, Validation

import numpy as np
import pytest
import torch
from helpers import (
    call_script,
    random_sequences,
    refused,
    save_tiny,
    save_vocabulary,
    write_collection,
    write_qrels,
    write_tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import adore_arguments, star_arguments

QUERIES, DOCUMENTS = 10, 30
SPLIT = ("--eval_split", "dev", "--metric", "RR@3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both trainings need, with dev queries. Some of them have graded judgements."""
    made = tmp_path_factory.mktemp("validation")
    preprocess = write_collection(made / "preprocess", DOCUMENTS, QUERIES)
    write_tokens(preprocess, "dev-query", random_sequences(QUERIES, 6, 1), 8)  # the train queries: easy to learn
    (preprocess / "dev-qrel.tsv").write_text(
        "".join(f"{query}\t0\t{row}\t{grade}\n" for query in range(7) for row, grade in ((query, 2), (29 - query, 0)))
        + "3 0 20 1\n"
    )
    hard = {str(query): list(range(12, 30)) for query in range(QUERIES)}
    (made / "hard.json").write_text(json.dumps(hard))
    save_vocabulary(save_tiny(made / "init", dropout=0.2))
    return made


def flags(split: str = "dev", metric: str = "RR@3", patience: int | None = None) -> Namespace:
    return Namespace(eval_split=split, metric=metric, early_stopping_patience=patience)


# The measure


@pytest.mark.parametrize("metric", ["RR@3", "nDCG@5", "R@4", "P(rel=2)@2", "AP@5"])
def test_the_measure_is_that_of_trec_eval(folder: Path, tmp_path: Path, metric: str) -> None:
    collection = Collection(folder / "preprocess", 8, 10)
    validation = Validation(flags(metric=metric), collection, DOCUMENTS)
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(DOCUMENTS), (QUERIES, 1)), axis=1)[:, : validation.depth]
    rows[1, 2:] = -1  # fewer were found
    write_run(tmp_path / "dev.rank.tsv", -np.arange(rows.size, dtype=np.float32).reshape(rows.shape), rows)
    qrels = collection.qrels_path("dev")
    values, _ = measure_run(parse_measures([metric]), tmp_path / "dev.rank.tsv", qrels, read_grades(qrels))
    assert validation.measure(rows) == pytest.approx(values[validation.name].mean(), abs=1e-12)


@settings(deadline=None)
@given(some.lists(some.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12), some.integers(1, 4))
def test_the_best_is_the_first_of_the_greatest_and_patience_counts_from_it(values: list[float], patience: int) -> None:
    validation = object.__new__(Validation)
    validation.evaluations, validation.patience, validation._kept = [], patience, None
    best, since = -1.0, 0
    for step, value in enumerate(values):
        new = value > best
        assert validation.add(step, value) == new
        best, since = (value, 0) if new else (best, since + 1)
        assert validation.is_exhausted == (since >= patience)
    assert validation.best == Evaluation(values.index(max(values)), max(values))


def test_a_best_model_ahead_of_the_state_stays_the_best(tmp_path: Path) -> None:
    """On a GPU, a repeated step may score less than it did before the training was stopped."""
    (tmp_path / BEST_FOLDER).mkdir()
    (tmp_path / BEST_FOLDER / EVALUATION_FILE).write_text(json.dumps({"step": 3, "value": 0.7}))
    validation = object.__new__(Validation)
    validation.split, validation.name, validation.patience = "dev", "RR@3", None
    validation.resume([(0, 0.1), (1, 0.4), (2, 0.3)], tmp_path)
    assert [validation.add(3, 0.6), validation.add(4, 0.7)] == [False, False]
    assert validation.notes()[EVALUATION_FILE]["step"] == 3
    assert "RR@3 0.7000 on dev after step 3 (0.1000 before" in validation.report(tmp_path)
    assert validation.add(5, 0.8)
    assert validation.notes()[EVALUATION_FILE]["step"] == 5


def test_without_patience_a_training_never_stops_early() -> None:
    validation = object.__new__(Validation)
    validation.evaluations, validation.patience = [Evaluation(step, -step) for step in range(50)], None
    assert not validation.is_exhausted


@pytest.mark.parametrize(
    "script, arguments", [("star/train.py", star_arguments), ("adore/train.py", adore_arguments)], ids=["star", "adore"]
)
@pytest.mark.parametrize(
    "more, words",
    [
        (["--metric", "nDCG@10"], "does nothing without --eval_split"),
        (["--eval_steps", 5], "does nothing without --eval_split"),
        (["--early_stopping_patience", 2], "does nothing without --eval_split"),
        (["--eval_split", "dev", "--metric", "AP"], "give a measure with a cut"),
        (["--eval_split", "dev", "--metric", "Foo@10"], "not a measure of ir_measures"),
        (["--eval_split", "test"], "test-query"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(
    folder: Path,
    tmp_path: Path,
    script: str,
    arguments: object,
    more: list[object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words in refused(script, *arguments(folder, tmp_path), *more, capsys=capsys)
    assert not (tmp_path / "models").exists()


def test_judgements_of_other_rows_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection(folder / "preprocess", 8, 10)
    monkeypatch.setattr(Collection, "qrels_path", lambda self, mode: write_qrels(tmp_path / "q.tsv", {0: [DOCUMENTS]}))
    with pytest.raises(InputError, match=f"names document {DOCUMENTS}, there are {DOCUMENTS}"):
        Validation(flags(), collection, DOCUMENTS)


# STAR


def star(folder: Path, output: Path, *more: object) -> None:
    call_script("star/train.py", *star_arguments(folder, output, "--learning_rate", 5e-3, *more))


def evaluations(log: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("eval/RR@3")]


@pytest.fixture(scope="module")
def unmeasured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unmeasured")
    star(folder, output, "--save_total_limit", 0)
    return output / "models"


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("measured")
    star(folder, output, *SPLIT, "--eval_steps", 2)
    return output


def test_measuring_changes_no_weight_of_star(unmeasured: Path, measured: Path) -> None:
    expected = load_file(unmeasured / "model.safetensors")
    found = load_file(measured / "models" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not (measured / "models" / "evaluation").exists()


def test_star_keeps_the_best_and_it_scores_what_was_measured(
    folder: Path, measured: Path, unmeasured: Path, tmp_path: Path
) -> None:
    found = evaluations(measured / "log")
    assert [step for step, _ in found] == [0, 2, 4, 6, 8, 9]  # before the training, every two steps, at the end
    best = measured / "models" / BEST_FOLDER
    told = json.loads((best / EVALUATION_FILE).read_text())
    assert (told["split"], told["measure"]) == ("dev", "RR@3")
    step, value = max(found, key=lambda each: each[1])
    assert 0 < step < 9  # otherwise this shows little
    assert (told["step"], told["value"]) == (step, pytest.approx(value))
    expected = load_file(unmeasured / f"checkpoint-{step}" / "model.safetensors")
    kept = load_file(best / "model.safetensors")
    assert all(torch.equal(expected[name], kept[name]) for name in expected)
    data = ("--preprocess_dir", folder / "preprocess", "--max_query_length", 6, "--max_doc_length", 10)
    arguments = ("--data_type", "passage", *data, "--mode", "dev", "--topk", 3, "--no_cuda")
    call_script("star/inference.py", *arguments, "--model_dir", best, "--output_dir", tmp_path)
    qrels = folder / "preprocess" / "dev-qrel.tsv"
    values, _ = measure_run(parse_measures(["RR@3"]), tmp_path / "dev.rank.tsv", qrels, read_grades(qrels))
    assert values["RR@3"].mean() == pytest.approx(told["value"], abs=1e-12)


def test_star_measures_after_each_epoch_without_eval_steps(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star(folder, tmp_path, *SPLIT)
    found = evaluations(tmp_path / "log")
    assert [step for step, _ in found] == [0, 3, 6, 9]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    shown = [(line["step"], line["eval_RR@3"]) for line in lines if "eval_RR@3" in line]
    assert shown == [(step, pytest.approx(value, rel=1e-3)) for step, value in found]


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_star_stopped_in_a_step_makes_the_same_evaluations(
    folder: Path, measured: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, train = 0, StaticTrainer.training_step

    def counted(self: StaticTrainer, *arguments: object, **options: object) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise KeyboardInterrupt
        return train(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StaticTrainer, "training_step", counted)
        with pytest.raises(SystemExit):
            star(folder, tmp_path, *SPLIT, "--eval_steps", 2)
    star(folder, tmp_path, *SPLIT, "--eval_steps", 2)
    assert evaluations(tmp_path / "log") == evaluations(measured / "log")
    for name in (Path("model.safetensors"), Path(BEST_FOLDER, "model.safetensors"), Path(BEST_FOLDER, EVALUATION_FILE)):
        assert (tmp_path / "models" / name).read_bytes() == (measured / "models" / name).read_bytes()


def test_star_stopped_in_an_evaluation_goes_on(
    folder: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings of the stopped evaluation are left; a later one, of other weights, removes them."""
    measure, calls = Validation.measure, 0

    def stopped(self: Validation, rows: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return measure(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", stopped)
        with pytest.raises(SystemExit):
            star(folder, tmp_path, *SPLIT, "--eval_steps", 2, "--save_strategy", "no")
    assert (tmp_path / "models" / "evaluation" / "passages.memmap").exists()
    star(folder, tmp_path, *SPLIT, "--eval_steps", 2, "--save_strategy", "no")  # it starts over
    assert evaluations(tmp_path / "log") == evaluations(measured / "log")
    assert not (tmp_path / "models" / "evaluation").exists()


def test_the_best_of_another_training_is_removed(folder: Path, tmp_path: Path) -> None:
    """A training that was stopped before its first checkpoint may start over with other settings."""
    best = tmp_path / "models" / BEST_FOLDER
    best.mkdir(parents=True)
    (best / EVALUATION_FILE).write_text(json.dumps({"step": 3, "value": 1.0}))
    star(folder, tmp_path, *SPLIT, *STILL[:2])
    assert not best.exists()


STILL = ("--learning_rate", 1e-12, "--early_stopping_patience", 2)  # no evaluation beats the first


def test_star_stops_early_and_is_then_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star(folder, tmp_path, *SPLIT, "--eval_steps", 1, *STILL)
    assert [step for step, _ in evaluations(tmp_path / "log")] == [0, 1, 2]
    assert "No evaluation beat the model before the training" in capsys.readouterr().out
    assert not (tmp_path / "models" / BEST_FOLDER).exists()
    star(folder, tmp_path, *SPLIT, "--eval_steps", 1, *STILL)
    assert "already holds the model of this training" in capsys.readouterr().out


def test_star_killed_after_its_early_stop_takes_no_further_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StaticTrainer, "save_model", save_of_checkpoints_only)
        with pytest.raises(SystemExit):
            star(folder, tmp_path, *SPLIT, "--eval_steps", 1, *STILL, "--save_steps", 1)
    monkeypatch.setattr(StaticTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    star(folder, tmp_path, *SPLIT, "--eval_steps", 1, *STILL, "--save_steps", 1)
    assert (tmp_path / "models" / "config.json").exists()


def save_of_checkpoints_only(self: StaticTrainer, output_dir: str | None = None, **_: object) -> None:
    if output_dir is None:
        raise KeyboardInterrupt
    self._save_encoder(Path(output_dir))


def test_another_measure_does_not_resume(folder: Path, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(
        "star/train.py",
        *star_arguments(folder, measured, "--eval_split", "dev", "--metric", "RR@5", "--eval_steps", 2),
        capsys=capsys,
    )
    assert "metric" in message


def test_a_measured_collection_is_encoded_in_full(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation encodes the collection with the weights of its step, not with those of the one before."""
    fingerprints, retrieve = [], Retriever.retrieve

    def noted(self: Retriever, *arguments: object) -> object:
        fingerprints.append(self.model.fingerprint())
        return retrieve(self, *arguments)

    monkeypatch.setattr(Retriever, "retrieve", noted)
    star(folder, tmp_path, *SPLIT)
    assert len(set(fingerprints)) == 4


# ADORE


def adore(folder: Path, output: Path, *more: object) -> None:
    call_script(
        "adore/train.py", *adore_arguments(folder, output), "--num_train_epochs", 4, "--logging_steps", 1, *more
    )


@pytest.fixture(scope="module")
def adore_measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("adore")
    adore(folder, output, *SPLIT, "--learning_rate", 1e-2)
    return output


def test_measuring_changes_no_weight_of_adore(folder: Path, adore_measured: Path, tmp_path: Path) -> None:
    adore(folder, tmp_path, "--learning_rate", 1e-2)
    for epoch in range(1, 5):
        name = Path("models", f"epoch-{epoch}", "model.safetensors")
        assert (tmp_path / name).read_bytes() == (adore_measured / name).read_bytes()


def test_adore_keeps_the_best_and_it_scores_what_was_measured(
    folder: Path, adore_measured: Path, tmp_path: Path
) -> None:
    found = evaluations(adore_measured / "log")
    assert [step for step, _ in found] == [0, 2, 4, 6, 8]
    step, value = max(found, key=lambda each: each[1])
    best = adore_measured / "models" / BEST_FOLDER
    told = json.loads((best / EVALUATION_FILE).read_text())
    assert step > 0
    assert (told["step"], told["value"]) == (step, pytest.approx(value))
    epoch = adore_measured / "models" / f"epoch-{step // 2}"
    assert (best / "model.safetensors").read_bytes() == (epoch / "model.safetensors").read_bytes()
    arguments = ("--preprocess_dir", folder / "preprocess", "--mode", "dev", "--topk", 3, "--no_cuda")
    vectors = ("--dmemmap_path", folder / "vectors.memmap", "--max_seq_length", 8)
    call_script("adore/inference.py", "--model_dir", best, "--output_dir", tmp_path, *arguments, *vectors)
    qrels = folder / "preprocess" / "dev-qrel.tsv"
    values, _ = measure_run(parse_measures(["RR@3"]), tmp_path / "dev.rank.tsv", qrels, read_grades(qrels))
    assert values["RR@3"].mean() == pytest.approx(told["value"], abs=1e-12)


@pytest.mark.parametrize("at", [1, 3, 4, 8])
def test_adore_stopped_in_a_step_makes_the_same_evaluations(
    folder: Path, adore_measured: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, train = 0, AdoreTraining._train_step

    def counted(self: AdoreTraining, rows: np.ndarray) -> dict[str, float]:
        nonlocal taken
        taken += 1
        if taken == at:
            signal.raise_signal(signal.SIGINT)
        return train(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(AdoreTraining, "_train_step", counted)
        with pytest.raises(SystemExit):
            adore(folder, tmp_path, *SPLIT, "--learning_rate", 1e-2)
    adore(folder, tmp_path, *SPLIT, "--learning_rate", 1e-2)
    assert evaluations(tmp_path / "log") == evaluations(adore_measured / "log")
    for name in ("epoch-4/model.safetensors", f"{BEST_FOLDER}/model.safetensors", f"{BEST_FOLDER}/{EVALUATION_FILE}"):
        assert (tmp_path / "models" / name).read_bytes() == (adore_measured / "models" / name).read_bytes()


def test_adore_stops_early_and_is_then_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*SPLIT, "--eval_steps", 1, *STILL, "--warmup_steps", 0)
    adore(folder, tmp_path, *more)
    assert [step for step, _ in evaluations(tmp_path / "log")] == [0, 1, 2]
    out = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'models' / 'epoch-1'}" in out
    assert "No evaluation beat the model before the training" in out
    adore(folder, tmp_path, *more)
    assert "already holds the checkpoints of this training" in capsys.readouterr().out


def test_adore_that_stops_within_an_epoch_keeps_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    more = (*SPLIT, "--eval_steps", 1, "--learning_rate", 1e-12, "--early_stopping_patience", 3, "--warmup_steps", 0)
    adore(folder, tmp_path, *more)
    assert (tmp_path / "models" / "checkpoint-3" / "config.json").exists()
    assert read_state(tmp_path / "models" / STATE_FILE)["step"] == 3


def test_adores_folder_holds_the_record_of_its_training(adore_measured: Path) -> None:
    record = json.loads((adore_measured / "models" / RECORD_FILE).read_text())
    assert record == read_state(adore_measured / "models" / STATE_FILE)["record"]
    assert (record["eval_split"], record["metric"]) == ("dev", "RR@3")
