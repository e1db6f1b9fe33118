"""A training that was stopped and is run again ends with the very weights of one that was not."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from drhard.adore import AdoreInput, AdoreTraining
from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.adore_state import STATE_FILE, write_state
from drhard.checkpoints import MINING_FOLDER, RECORD_FILE, keep_newest, open_training
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.files import sole_writer
from drhard.hub import TOKENIZER_FILES, _fetch, find_checkpoint
from drhard.model_folder import save_encoder
from drhard.provenance import write_seal
from drhard.qrels import read_relevant
from drhard.sampling import TrainingDataset
from drhard.trainer import StaticTrainer

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import (
    call_script,
    no_larger_files_than,
    refused,
    save_tiny,
    save_vocabulary,
    snapshot,
    tiny_model,
    write_collection,
)
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ADORE: 10 queries in batches of 4, three steps an epoch, an update every two of twelve

SETTINGS = AdoreSettings(
    metric_cut=4,
    neg_topk=5,
    per_gpu_batch_size=4,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    warmup_steps=1,
    num_train_epochs=4,
)
QUERIES, DOCUMENTS, STEPS = 10, 30, 12


class Killed(BaseException):
    """Ends a run as a killed process ends: nothing of the project catches it."""


class StoppingIndex(ExactIndex):
    """Counts its searches, of which there is one a step; at search number ``at`` comes Ctrl-C, or ``stop``."""

    def __init__(self, documents: np.ndarray, at: int | None, stop: type[BaseException]):
        super().__init__(documents)
        self.at, self.stop, self.searches = at, stop, 0

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.searches += 1
        if self.searches == self.at:
            if self.stop is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            else:
                raise self.stop
        return super().search(queries, k)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("adore") / "preprocess", DOCUMENTS, QUERIES)


class Given(NamedTuple):
    """What a training is given: so many queries and documents, weights by their seed, an index by its name."""

    queries: int = QUERIES
    documents: int = DOCUMENTS
    weights: int = 0
    index: str = "Flat"


GIVEN = Given()


def adore(
    collection: Path,
    folder: Path,
    at: int | None = None,
    stop: type[BaseException] = Killed,
    settings: AdoreSettings = SETTINGS,
    given: Given = GIVEN,
    state_seconds: float = AdoreOutput.state_seconds,
) -> int:
    """Train, until step ``at`` if one is given; return how many steps were taken."""
    vectors = np.random.default_rng(0).normal(size=(given.documents, 16)).astype(np.float32)
    index = StoppingIndex(vectors, at, stop)
    relevant = read_relevant(collection / "train-qrel.tsv")
    data = AdoreInput(
        collection=Collection(collection, 8),
        relevant={row: pids for row, pids in relevant.items() if row < given.queries},
        documents=vectors,
        index=index,
        index_outcome=given.index,
    )
    output = AdoreOutput(folder / "models", folder / "log", Path(), 5, 2, state_seconds)
    training = AdoreTraining.open(tiny_model(seed=given.weights, dropout=0.2), data, settings, output)
    with contextlib.suppress(*([] if at is None else [stop])):
        training.run()
        assert at is None or stop is KeyboardInterrupt
    return index.searches


def checkpoints(folder: Path) -> dict[str, Weights]:
    return {path.parent.name: load_file(path) for path in sorted((folder / "models").glob("*/model.safetensors"))}


@pytest.fixture(scope="module")
def unbroken(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert adore(collection, folder) == STEPS
    found = checkpoints(folder)
    assert set(found) == {"epoch-1", "epoch-2", "epoch-3", "epoch-4", "checkpoint-5", "checkpoint-10"}
    assert not equal(found["epoch-1"], found["epoch-4"])
    return found


def assert_same_training(folder: Path, unbroken: dict[str, Weights]) -> None:
    found = checkpoints(folder)
    assert set(found) == set(unbroken)
    for name, weights in unbroken.items():
        assert equal(found[name], weights), name


def test_same_seed_same_weights_other_seed_others(
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights]
) -> None:
    adore(collection, tmp_path / "same")
    assert_same_training(tmp_path / "same", unbroken)
    adore(collection, tmp_path / "other", settings=AdoreSettings(**{**vars(SETTINGS), "seed": 1}))
    assert not equal(checkpoints(tmp_path / "other")["epoch-4"], unbroken["epoch-4"])


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 7, 8, 12])
def test_interrupted_adore_goes_on(collection: Path, tmp_path: Path, unbroken: dict[str, Weights], at: int) -> None:
    """Ctrl-C before the first update, between two, in the middle of one, in the last."""
    adore(collection, tmp_path, at, stop=KeyboardInterrupt)
    updates = (at - 1) // SETTINGS.gradient_accumulation_steps
    taken = adore(collection, tmp_path)
    assert taken <= STEPS - updates * SETTINGS.gradient_accumulation_steps  # it went on after the last update
    assert_same_training(tmp_path, unbroken)


def test_adore_interrupted_twice_goes_on(collection: Path, tmp_path: Path, unbroken: dict[str, Weights]) -> None:
    adore(collection, tmp_path, 3, stop=KeyboardInterrupt)
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    adore(collection, tmp_path)
    assert_same_training(tmp_path, unbroken)


@pytest.mark.parametrize("at", [2, 5, 8])
@pytest.mark.parametrize("state", ["written often", "hardly ever written"])
def test_killed_adore_is_simply_run_again(
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights], at: int, state: str
) -> None:
    seconds = 0 if state == "written often" else AdoreOutput.state_seconds
    adore(collection, tmp_path, at, stop=Killed, state_seconds=seconds)
    taken = adore(collection, tmp_path, state_seconds=seconds)
    if state == "written often" and at > 2:
        assert taken < STEPS
    assert_same_training(tmp_path, unbroken)


def test_finished_adore_run_again_changes_nothing(
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights]
) -> None:
    adore(collection, tmp_path)
    assert adore(collection, tmp_path) == 0
    assert_same_training(tmp_path, unbroken)


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"learning_rate": 2e-2}},
        {"settings": {"seed": 1}},
        {"settings": {"metric_cut": None}},
        {"settings": {"per_gpu_batch_size": 5}},
        {"settings": {"num_train_epochs": 5}},
        {"given": Given(index="PQ4x4")},
        {"given": Given(queries=9)},
        {"given": Given(documents=31)},
        {"given": Given(weights=1)},
    ],
    ids=str,
)
def test_adore_with_other_settings_is_refused(collection: Path, tmp_path: Path, changed: dict) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    options = changed | (
        {"settings": AdoreSettings(**{**vars(SETTINGS), **changed["settings"]})} if "settings" in changed else {}
    )
    with pytest.raises(InputError) as error:
        adore(collection, tmp_path, **options)
    assert str(error.value).startswith(f"{tmp_path / 'models'}: ")


def other_loss(*arguments: torch.Tensor) -> torch.Tensor:
    return 2 * AdoreTraining.loss(*arguments)


def test_adore_with_another_loss_is_refused(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    monkeypatch.setattr(AdoreTraining, "loss", staticmethod(other_loss))
    with pytest.raises(InputError, match="the training there was begun with loss adore_loss, not other_loss; name "):
        adore(collection, tmp_path)


def test_damaged_state_is_refused(collection: Path, tmp_path: Path) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    state = tmp_path / "models" / STATE_FILE
    os.truncate(state, 3000)
    with pytest.raises(InputError, match=STATE_FILE) as error:
        adore(collection, tmp_path)
    assert "\n" not in str(error.value)


def change(state: Path, **values: object) -> None:
    torch.save(torch.load(state, weights_only=True) | values, state)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "wrong step": lambda state: change(state, step=99_999),
    "an earlier step": lambda state: change(state, step=0),
    "other weights": lambda state: change(state, model=tiny_model(seed=5).state_dict()),
    "no optimizer": lambda state: change(state, optimizer={}),
    "no dictionary": lambda state: torch.save([1, 2], state),
    "empty": lambda state: os.truncate(state, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_is_not_as_it_was_written_is_refused(collection: Path, tmp_path: Path, damage: str) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    state = tmp_path / "models" / STATE_FILE
    DAMAGES[damage](state)
    with pytest.raises(InputError, match=r"damaged \(.*\); name another --model_save_dir, or ") as error:
        adore(collection, tmp_path)
    assert str(error.value).startswith(f"{state}: ")
    assert "\n" not in str(error.value)


def test_a_state_of_an_earlier_version_is_told(collection: Path, tmp_path: Path) -> None:
    """The first version wrote no digest, those after it recorded less."""
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    path = tmp_path / "models" / STATE_FILE
    state = torch.load(path, weights_only=True)
    del state["digest"], state["record"]["loss"]
    torch.save(state, path)
    with pytest.raises(InputError, match=f"^{path}: an earlier version wrote it, .*; name another --model_save_dir, "):
        adore(collection, tmp_path)
    write_state(path, state)
    with pytest.raises(InputError, match="an earlier version began the training there and did not record its loss; "):
        adore(collection, tmp_path)


def test_adore_killed_while_it_writes_a_checkpoint_is_simply_run_again(
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are written, the name is not given; a killed process removes nothing."""
    with monkeypatch.context() as patch:
        patch.setattr("drhard.files.os.replace", killing_at("epoch-2"))
        patch.setattr("drhard.files.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            adore(collection, tmp_path)
    assert (tmp_path / "models" / "epoch-2.partial" / "model.safetensors").exists()
    assert not (tmp_path / "models" / "epoch-2").exists()
    adore(collection, tmp_path)
    assert_same_training(tmp_path, unbroken)
    assert not list(tmp_path.rglob("*.partial*"))


def killing_at(name: str) -> Callable[[Path, Path], None]:
    """os.replace that is killed before it gives something this name."""

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise Killed
        os.rename(source, target)

    return replace


def test_adore_whose_last_checkpoint_was_moved_writes_it_again(
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights]
) -> None:
    adore(collection, tmp_path)
    (tmp_path / "models" / "epoch-4").rename(tmp_path / "elsewhere")
    assert adore(collection, tmp_path) == 0
    assert_same_training(tmp_path, unbroken)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_adore_stops_where_weights_are_not_finite(
    collection: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the step itself, or before anything is written; nothing with NaN is written."""
    loss = AdoreTraining.loss
    taken = 0

    def diverging(*arguments: object) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return loss(*arguments) * (math.nan if taken == step else 1)

    monkeypatch.setattr(AdoreTraining, "loss", staticmethod(diverging))
    with pytest.raises(InputError, match=f"^step {step}: the loss is not finite; "):
        adore(collection, tmp_path)
    assert not (tmp_path / "models" / "epoch-4").exists()
    for weights in checkpoints(tmp_path).values():
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_adore_writes_no_weights_that_are_not_finite(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update breaks them, and no loss shows it."""
    take = AdoreTraining._train_step

    def breaking(self: AdoreTraining, *arguments: object) -> dict[str, float]:
        values = take(self, *arguments)
        if self.step == STEPS - 1:
            self.model.norm.bias.data[0] = math.inf
        return values

    monkeypatch.setattr(AdoreTraining, "_train_step", breaking)
    with pytest.raises(InputError, match=r"^step 12: the weights of norm\.bias are not finite; "):
        adore(collection, tmp_path)
    assert not (tmp_path / "models" / "epoch-4").exists()


def test_a_warm_up_longer_than_the_training_is_told(
    collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adore(collection, tmp_path / "short", 1)
    assert not [message for message in caplog.messages if "warm-up" in message]
    adore(collection, tmp_path / "long", 1, settings=AdoreSettings(**{**vars(SETTINGS), "warmup_steps": 6}))
    assert [message for message in caplog.messages if "ends after 6 steps and its warm-up takes 6, " in message]


def test_adore_without_an_update_is_refused(collection: Path, tmp_path: Path) -> None:
    settings = AdoreSettings(**{**vars(SETTINGS), "gradient_accumulation_steps": 13})
    with pytest.raises(InputError, match="has only 12 batches"):
        adore(collection, tmp_path, settings=settings)


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_state_cannot_run_code(collection: Path, tmp_path: Path) -> None:
    state, trace = tmp_path / "models" / STATE_FILE, tmp_path / "trace"
    state.parent.mkdir()
    torch.save({"step": Command(f"touch '{trace}'")}, state)
    with pytest.raises(InputError, match=STATE_FILE):
        adore(collection, tmp_path)
    assert not trace.exists()


# STAR: 10 queries in batches of 4, three steps an epoch, nine in all


@pytest.fixture(scope="module")
def star_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("star")
    write_collection(folder / "preprocess", DOCUMENTS, QUERIES)
    (folder / "hard.json").write_text(
        "{" + ", ".join(f'"{query}": [{", ".join(map(str, range(12, 30)))}]' for query in range(QUERIES)) + "}"
    )
    save_tiny(folder / "init", dropout=0.2)
    save_tiny(folder / "other", seed=1, dropout=0.2)
    return folder


def star_arguments(star_input: Path, folder: Path, *more: object) -> list[object]:
    return [
        "--do_train",
        "--max_query_length",
        6,
        "--max_doc_length",
        10,
        "--preprocess_dir",
        star_input / "preprocess",
        "--hardneg_path",
        star_input / "hard.json",
        "--init_path",
        star_input / "init",
        "--output_dir",
        folder / "models",
        "--logging_dir",
        folder / "log",
        "--per_device_train_batch_size",
        4,
        "--num_train_epochs",
        3,
        "--learning_rate",
        1e-2,
        "--warmup_steps",
        2,
        "--logging_steps",
        2,
        "--save_steps",
        2,
        "--no_cuda",
        *more,
    ]


def stop_star(monkeypatch: pytest.MonkeyPatch, star_input: Path, folder: Path, steps: int, *more: object) -> None:
    """Run star/train.py with :func:`star_arguments` and press Ctrl-C after so many steps."""
    stop_after(monkeypatch, folder, steps, *star_arguments(star_input, folder, *more))


def stop_after(monkeypatch: pytest.MonkeyPatch, folder: Path, steps: int, *arguments: object) -> None:
    """Run star/train.py and press Ctrl-C after so many steps."""
    taken = 0
    train = StaticTrainer.training_step

    def counted(self: StaticTrainer, *of_step: object, **options: object) -> torch.Tensor:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return train(self, *of_step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StaticTrainer, "training_step", counted)
        with pytest.raises(SystemExit) as ended:
            call_script("star/train.py", *arguments)
    assert ended.value.code == 130
    assert not (folder / "models" / "config.json").exists()  # not a finished model


OPTIMIZERS = ["lamb", "adamw"]


@pytest.fixture(scope="module", params=OPTIMIZERS)
def star_unbroken(
    request: pytest.FixtureRequest, star_input: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Weights, list[tuple[int, int]]]:
    """Optimizer, final weights, and the (epoch, query index) of each draw."""
    folder = tmp_path_factory.mktemp("unbroken")
    drawn = []
    draw = TrainingDataset.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainingDataset,
            "__getitem__",
            lambda self, index: drawn.append((int(self.epoch), index)) or draw(self, index),
        )
        call_script("star/train.py", *star_arguments(star_input, folder, "--optimizer_str", request.param))
    weights = load_file(folder / "models" / "model.safetensors")
    assert not equal(weights, load_file(star_input / "init" / "model.safetensors"))
    return request.param, weights, drawn


def test_star_draws_anew_in_each_epoch(star_unbroken: tuple[str, Weights, list[tuple[int, int]]]) -> None:
    _, _, drawn = star_unbroken
    assert sorted(drawn) == [(epoch, index) for epoch in range(3) for index in range(QUERIES)]
    orders = [[index for epoch, index in drawn if epoch == wanted] for wanted in range(3)]
    assert len({tuple(order) for order in orders}) == 3  # shuffled anew too


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_stopped_star_goes_on(
    tmp_path: Path, star_input: Path, star_unbroken: tuple, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, weights, _ = star_unbroken
    stop_star(monkeypatch, star_input, tmp_path, steps, "--optimizer_str", optimizer)
    drawn = []
    draw = TrainingDataset.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDataset, "__getitem__", lambda self, index: drawn.append(index) or draw(self, index))
        call_script("star/train.py", *star_arguments(star_input, tmp_path, "--optimizer_str", optimizer))
    assert equal(load_file(tmp_path / "models" / "model.safetensors"), weights)


def test_star_with_other_settings_is_refused(
    tmp_path: Path, star_input: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_star(monkeypatch, star_input, tmp_path, 3)
    for name, value in (
        ("learning_rate", 2e-2),
        ("seed", 1),
        ("init_path", star_input / "other"),
        ("negatives", "hard"),
        ("per_query_hard_num", 2),
    ):
        message = refused("star/train.py", *star_arguments(star_input, tmp_path, f"--{name}", value), capsys=capsys)
        assert message.startswith(f"error: {tmp_path / 'models'}: ")
        assert name.removesuffix("_path") in message


def test_star_with_another_loss_is_refused(
    tmp_path: Path, star_input: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_star(monkeypatch, star_input, tmp_path, 3)
    monkeypatch.setattr(StaticTrainer, "loss", staticmethod(other_loss))
    message = refused("star/train.py", *star_arguments(star_input, tmp_path), capsys=capsys)
    assert "the training there was begun with loss pairwise_loss, not other_loss; give --overwrite" in message


@pytest.mark.parametrize("finished", [False, True], ids=["stopped", "finished"])
def test_star_of_an_earlier_version_is_told(
    tmp_path: Path,
    star_input: Path,
    finished: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if finished:
        call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    else:
        stop_star(monkeypatch, star_input, tmp_path, 3, *FIVE)
    path = tmp_path / "models" / RECORD_FILE
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "loss"}))
    message = refused("star/train.py", *star_arguments(star_input, tmp_path, *FIVE), capsys=capsys)
    assert "an earlier version began the training there and did not record its loss; give --overwrite" in message


def test_finished_star_is_not_overwritten_unless_asked(
    tmp_path: Path, star_input: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_script("star/train.py", *star_arguments(star_input, tmp_path, "--max_steps", 2))
    model = tmp_path / "models" / "model.safetensors"
    before = model.read_bytes()
    message = refused("star/train.py", *star_arguments(star_input, tmp_path, "--max_steps", 3), capsys=capsys)
    assert str(tmp_path / "models") in message
    assert "--overwrite_output_dir" in message
    assert model.read_bytes() == before
    call_script("star/train.py", *star_arguments(star_input, tmp_path, "--max_steps", 3, "--overwrite_output_dir"))
    assert model.read_bytes() != before


def model_of(folder: Path) -> Weights:
    return load_file(folder / "models" / "model.safetensors")


FIVE = ("--max_steps", 5)  # the second epoch is cut in two


@pytest.fixture(scope="module")
def five_steps(star_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights after five steps."""
    folder = tmp_path_factory.mktemp("five")
    call_script("star/train.py", *star_arguments(star_input, folder, *FIVE))
    assert sorted(path.name for path in (folder / "models").glob("checkpoint-*")) == ["checkpoint-5"]
    return model_of(folder)


@pytest.fixture(scope="module")
def stopped(star_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after its fourth step, with the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_star(patch, star_input, folder, 4, *FIVE, "--save_total_limit", 2)
    return folder


def put_step(folder: Path, step: int) -> None:
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"global_step": step}))


def of_the_other(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder.parent / "checkpoint-2" / name, folder / name)


STAR_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "optimizer missing": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "schedule missing": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "random numbers missing": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "optimizer cut": (lambda folder: os.truncate(folder / "optimizer.pt", 5000), "optimizer.pt is damaged"),
    "schedule empty": (lambda folder: os.truncate(folder / "scheduler.pt", 0), "scheduler.pt is damaged"),
    "step 99,999": (lambda folder: put_step(folder, 99_999), "trainer_state.json is damaged"),
    "optimizer of another step": (of_the_other("optimizer.pt"), "optimizer.pt is damaged"),
    "seal missing": (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json is missing"),
    "seal of a list": (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json is damaged"),
    "all of another step": (
        lambda folder: shutil.copytree(folder.parent / "checkpoint-2", folder, dirs_exist_ok=True),
        "it is of step 2",
    ),
    "all of another training": (
        lambda folder: write_seal(folder, 4, {}, [path.name for path in folder.iterdir() if path.is_file()]),
        "it belongs to another training",
    ),
}


@pytest.mark.parametrize("damage", STAR_DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    stopped: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    output_dir = tmp_path / "models"
    shutil.copytree(stopped / "models", output_dir)
    record = json.loads((output_dir / RECORD_FILE).read_text())
    assert open_training(output_dir, record, overwrite=False) == output_dir / "checkpoint-4"
    harm, reason = STAR_DAMAGES[damage]
    harm(output_dir / "checkpoint-4")
    assert open_training(output_dir, record, overwrite=False) == output_dir / "checkpoint-2"
    assert f"{output_dir / 'checkpoint-4'} is skipped: {reason}" in caplog.messages
    (output_dir / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(InputError, match=f"no checkpoint is whole .*{reason}.*; give --overwrite_output_dir"):
        open_training(output_dir, record, overwrite=False)


def test_star_goes_on_from_the_newest_whole_checkpoint(
    star_input: Path, stopped: Path, five_steps: Weights, tmp_path: Path
) -> None:
    """The damaged one is replaced on the way; what a killed process left unfinished goes too."""
    shutil.copytree(stopped / "models", tmp_path / "models")
    (tmp_path / "models" / "checkpoint-4" / "optimizer.pt").unlink()
    shutil.copytree(tmp_path / "models" / "checkpoint-4", tmp_path / "models" / "checkpoint-3.partial")
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    assert equal(model_of(tmp_path), five_steps)
    assert sorted(path.name for path in (tmp_path / "models").glob("checkpoint-*")) == ["checkpoint-5"]


def test_star_goes_on_from_the_checkpoint_that_is_asked_for(
    star_input: Path, stopped: Path, five_steps: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stopped / "models", tmp_path / "models")
    asked = tmp_path / "models" / "checkpoint-2"
    call = *star_arguments(star_input, tmp_path, *FIVE), "--resume_from_checkpoint", asked
    call_script("star/train.py", *call)
    assert f"resuming from {asked}" in capsys.readouterr().out
    assert equal(model_of(tmp_path), five_steps)
    for path in [*(tmp_path / "models").glob("*.json"), tmp_path / "models" / "model.safetensors"]:
        path.unlink() if path.name != RECORD_FILE else None
    message = refused("star/train.py", *call[:-1], tmp_path / "models" / "checkpoint-1", capsys=capsys)
    assert "checkpoint-1: cannot resume from this checkpoint: checkpoint.json is missing" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checkpoint.json"])
def test_star_killed_while_it_writes_the_model_is_simply_run_again(
    star_input: Path, five_steps: Weights, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is of the last step: not one more is taken."""
    models = tmp_path / "models"

    def replace(source: Path, target: Path) -> None:
        if Path(target) == models / name:
            raise Killed
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("drhard.files.os.replace", replace)
        with pytest.raises(Killed):
            call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    assert not (models / "checkpoint.json").exists()
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    assert equal(model_of(tmp_path), five_steps)


def test_a_finished_star_run_again_says_so(
    star_input: Path, five_steps: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder with the same content too; with other content it is refused, as it is with a damaged model."""
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    moved = shutil.copytree(star_input, tmp_path / "moved")
    before = snapshot(tmp_path / "models")
    for folder in (star_input, moved):
        capsys.readouterr()
        call_script("star/train.py", *star_arguments(folder, tmp_path, *FIVE))
        assert f"{tmp_path / 'models'} already holds the model of this training" in capsys.readouterr().out
    for name, content in (
        ("hard.json", (moved / "hard.json").read_text().replace("29", "28")),
        ("preprocess/train-qrel.tsv", (moved / "preprocess/train-qrel.tsv").read_text() + "0\t0\t3\t1\n"),
    ):
        kept = (moved / name).read_text()
        (moved / name).write_text(content)
        message = refused("star/train.py", *star_arguments(moved, tmp_path, *FIVE), capsys=capsys)
        assert "the training there was begun with another " in message
        (moved / name).write_text(kept)
    assert snapshot(tmp_path / "models") == before
    os.truncate(tmp_path / "models" / "model.safetensors", 5000)
    message = refused("star/train.py", *star_arguments(star_input, tmp_path, *FIVE), capsys=capsys)
    assert "has a finished model, but model.safetensors is damaged; give --overwrite_output_dir" in message


def mining_arguments(star_input: Path, folder: Path, *more: object) -> list[object]:
    """The flags of a training that mines its own hard negatives."""
    arguments = star_arguments(star_input, folder, *more)
    place = arguments.index("--hardneg_path")
    return arguments[:place] + arguments[place + 2 :]


def test_hard_negatives_that_star_mined_itself_are_read_again(
    star_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = mining_arguments(star_input, tmp_path, *FIVE)
    call_script("star/train.py", *arguments)
    weights = model_of(tmp_path)
    for name in ("config.json", "checkpoint.json"):  # as if its process had been killed
        (tmp_path / "models" / name).unlink()
    capsys.readouterr()
    call_script("star/train.py", *arguments)
    assert "Mining" not in capsys.readouterr().out
    assert equal(model_of(tmp_path), weights)
    for name in ("config.json", "checkpoint.json"):
        (tmp_path / "models" / name).unlink()
    hard = tmp_path / "models" / "hard.json"
    hard.write_text(hard.read_text() + " ")
    message = refused("star/train.py", *arguments, capsys=capsys)
    assert f"{hard}: was changed after this training mined it" in message


def test_star_stopped_after_mining_mines_only_once(
    star_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, what was mined is all there is. Another model, or starting over, mines again."""
    searches = 0
    search = ExactIndex.passes

    def counted(self: ExactIndex, *arguments: object) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal searches
        searches += 1
        return search(self, *arguments)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def train(*flags: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(StaticTrainer, "training_step", stop)
            with pytest.raises(SystemExit) as ended:
                call_script("star/train.py", *mining_arguments(star_input, tmp_path, *flags))
        assert ended.value.code == 130

    monkeypatch.setattr(ExactIndex, "passes", counted)
    hard = tmp_path / "models" / "hard.json"
    train()
    assert searches == 1
    mined = hard.read_bytes()
    train()
    train("--learning_rate", 2e-2)  # not what it was mined with
    assert (searches, hard.read_bytes()) == (1, mined)
    hard.write_text("{}")
    train()
    assert (searches, hard.read_bytes()) == (2, mined)
    train("--overwrite_output_dir")
    assert (searches, hard.read_bytes()) == (3, mined)
    shutil.rmtree(tmp_path / "models" / MINING_FOLDER)
    train("--init_path", star_input / "other")
    assert searches == 4
    assert hard.read_bytes() != mined
    shutil.rmtree(tmp_path / "models")
    train()
    train("--negative_ranks", f"1-{DOCUMENTS // 2}")  # what it mines by default
    assert (searches, hard.read_bytes()) == (5, mined)
    for number, flags in enumerate((["--negative_ranks", "3-9"], ["--relative_margin", 0], []), start=6):
        for _ in range(2):  # again only once
            train(*flags)
            assert searches == number
            assert (hard.read_bytes() == mined) == (not flags)


MINED_WITH = {  # flags: what the record and the stamp of hard.json say
    (): ("mined with --init_path", DOCUMENTS // 2),
    ("--negative_ranks", "3-9"): ("mined with --init_path, ranks 3-9", "ranks 3-9"),
    ("--relative_margin", 0): ("mined with --init_path, ranks 1-15, margin 0.0", "ranks 1-15, margin 0.0"),
    ("--relative_margin", 0.01): ("mined with --init_path, ranks 1-15, margin 0.01", "ranks 1-15, margin 0.01"),
}


@pytest.mark.parametrize("flags", MINED_WITH)
def test_star_with_another_margin_or_other_ranks_is_refused(
    star_input: Path,
    tmp_path: Path,
    flags: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(monkeypatch, tmp_path, 3, *mining_arguments(star_input, tmp_path, *FIVE, *flags))
    recorded, stamped = MINED_WITH[flags]
    models = tmp_path / "models"
    assert json.loads((models / RECORD_FILE).read_text())["hard negatives"] == recorded
    assert json.loads((models / "hard.json.json").read_text())["topk"] == stamped
    before = snapshot(models)
    for others in MINED_WITH.keys() - {flags}:
        message = refused("star/train.py", *mining_arguments(star_input, tmp_path, *FIVE, *others), capsys=capsys)
        said = f"the training there was begun with hard negatives {recorded}, not {MINED_WITH[others][0]}; give --over"
        assert said in message
    assert snapshot(models) == before
    call_script("star/train.py", *mining_arguments(star_input, tmp_path, *FIVE, *flags))
    call_script("star/train.py", *mining_arguments(star_input, tmp_path / "unbroken", *FIVE, *flags))
    assert equal(model_of(tmp_path), model_of(tmp_path / "unbroken"))


def test_starting_over_leaves_given_hard_negatives_alone(star_input: Path, tmp_path: Path) -> None:
    hard = tmp_path / "models" / "hard.json"
    call_script("star/train.py", *mining_arguments(star_input, tmp_path, "--max_steps", 1))
    mined = hard.read_bytes()
    given = ("--hardneg_path", hard, "--overwrite_output_dir", "--max_steps", 1)
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *given))
    assert hard.read_bytes() == mined


@pytest.mark.parametrize("step", [1, 4])
def test_star_stops_where_the_loss_is_not_finite(
    star_input: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = StaticTrainer.loss
    taken = 0

    def diverging(*arguments: object) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return loss(*arguments) * (math.inf if taken == step else 1)

    monkeypatch.setattr(StaticTrainer, "loss", staticmethod(diverging))
    message = refused("star/train.py", *star_arguments(star_input, tmp_path), capsys=capsys)
    assert message.startswith(f"error: step {step}: the loss is not finite; ")
    assert not (tmp_path / "models" / "config.json").exists()


def test_star_writes_no_weights_that_are_not_finite(
    star_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = StaticTrainer.training_step

    def breaking(self: StaticTrainer, *arguments: object, **options: object) -> torch.Tensor:
        loss = train(self, *arguments, **options)
        if self.state.global_step == 3:
            self.model.norm.bias.data[0] = math.nan
        return loss

    monkeypatch.setattr(StaticTrainer, "training_step", breaking)
    message = refused("star/train.py", *star_arguments(star_input, tmp_path), capsys=capsys)
    assert re.match(r"error: step 4: the weights of .* are not finite; ", message)
    assert [path.name for path in (tmp_path / "models").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("bytes_allowed", [1000, 3000, 40_000, 90_000], ids=["record", "events", "model", "optimizer"])
def test_star_on_a_full_disk_is_one_sentence_and_goes_on_once_there_is_room(
    star_input: Path, five_steps: Weights, tmp_path: Path, bytes_allowed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_larger_files_than(bytes_allowed):
        message = refused("star/train.py", *star_arguments(star_input, tmp_path, *FIVE), capsys=capsys)
    assert re.match(r"error: /.*: File too large \(the disk mounted at /.* free\); fix this", message)
    models = tmp_path / "models"
    assert not list(models.glob("checkpoint-*"))
    assert not (models / "config.json").exists()
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE))
    assert equal(model_of(tmp_path), five_steps)


@pytest.mark.parametrize("bytes_allowed", [1000, 40_000, 120_000], ids=["events", "weights", "state"])
def test_adore_on_a_full_disk_is_one_sentence_and_goes_on_once_there_is_room(
    collection: Path, unbroken: dict[str, Weights], tmp_path: Path, bytes_allowed: int
) -> None:
    with no_larger_files_than(bytes_allowed), pytest.raises(InputError, match="File too large .the disk mounted at /"):
        adore(collection, tmp_path)
    for folder in (tmp_path / "models").glob("epoch-*"):  # whole, or not there
        assert equal(load_file(folder / "model.safetensors"), unbroken[folder.name])
    adore(collection, tmp_path)
    assert_same_training(tmp_path, unbroken)


def test_two_trainings_do_not_write_one_folder(
    star_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_writer(tmp_path / "models"):
        before = snapshot(tmp_path)
        message = refused("star/train.py", *star_arguments(star_input, tmp_path), capsys=capsys)
        assert message.startswith(f"error: {tmp_path / 'models'}: another process is writing it; ")
        message = refused("adore/train.py", *adore_arguments(star_input, tmp_path), capsys=capsys)
        assert message.startswith(f"error: {tmp_path / 'models'}: another process is writing it; ")
        assert snapshot(tmp_path) == before


def adore_arguments(folder: Path, output: Path) -> list[object]:
    vectors = folder / "vectors.memmap"
    np.random.default_rng(0).normal(size=(DOCUMENTS, 16)).astype(np.float32).tofile(vectors)
    return [
        "--metric_cut",
        4,
        "--neg_topk",
        4,
        "--init_path",
        folder / "init",
        "--pembed_path",
        vectors,
        "--model_save_dir",
        output / "models",
        "--log_dir",
        output / "log",
        "--preprocess_dir",
        folder / "preprocess",
        "--num_train_epochs",
        1,
        "--per_gpu_batch_size",
        5,
        "--max_seq_length",
        8,
        "--warmup_steps",
        1,
    ]


@pytest.fixture
def hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model, with its tokenizer, in the cache of the Hugging Face hub, which cannot be reached."""
    name, commit = "someone/tiny", "0" * 40
    cached = tmp_path / "hub" / "models--someone--tiny"
    save_vocabulary(save_tiny(cached / "snapshots" / commit, dropout=0.2))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _fetch.cache_clear()
    return name


@pytest.mark.parametrize(
    "script, arguments, trained",
    [
        ("star/train.py", star_arguments, ("models", "models/checkpoint-2")),
        ("adore/train.py", adore_arguments, ("models/epoch-1",)),
    ],
)
def test_what_is_trained_from_a_model_of_the_hub_has_its_tokenizer(
    star_input: Path, tmp_path: Path, hub_model: str, script: str, arguments: Callable, trained: Sequence[str]
) -> None:
    more = ["--max_steps", 2] if script == "star/train.py" else []
    call_script(script, *arguments(star_input, tmp_path), *more, "--init_path", hub_model)
    for folder in trained:
        for name in TOKENIZER_FILES:
            assert (tmp_path / folder / name).read_bytes() == (find_checkpoint(hub_model) / name).read_bytes()


def test_a_finished_adore_run_again_says_so(
    star_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_script("adore/train.py", *adore_arguments(star_input, tmp_path))
    before = snapshot(tmp_path)
    assert "Wrote " in capsys.readouterr().out
    call_script("adore/train.py", *adore_arguments(star_input, tmp_path))
    assert f"{tmp_path / 'models'} already holds the checkpoints of this training" in capsys.readouterr().out
    assert snapshot(tmp_path) == before


SHARED_SETTINGS = {  # of the same names, for both trainings
    "eval_split",
    "eval_steps",
    "metric",
    "early_stopping_patience",
    "learning_rate",
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_steps",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "score_scale",
    "seed",
}


def test_names_in_both_records_mean_the_same(star_input: Path, tmp_path: Path) -> None:
    call_script("star/train.py", *star_arguments(star_input, tmp_path / "star", "--max_steps", 1))
    call_script("adore/train.py", *adore_arguments(star_input, tmp_path / "adore"))
    star = json.loads((tmp_path / "star" / "models" / RECORD_FILE).read_text())
    state = torch.load(tmp_path / "adore" / "models" / STATE_FILE, weights_only=True)
    shared = star.keys() & state["record"].keys()
    assert shared == SHARED_SETTINGS | {"init_path", "config", "queries", "judgements", "loss"}
    for name in ("init_path", "config", "queries", "judgements"):
        assert star[name] == state["record"][name]
    assert (star["loss"], state["record"]["loss"]) == ("pairwise_loss", "adore_loss")


@pytest.mark.parametrize("script, arguments", [("star/train.py", star_arguments), ("adore/train.py", adore_arguments)])
def test_weights_that_are_not_finite_are_refused_at_the_start(
    star_input: Path, tmp_path: Path, script: str, arguments: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(star_input, tmp_path / "input")
    model = tiny_model()
    model.norm.bias.data[3] = math.nan
    save_encoder(model, folder / "init", "")
    message = refused(script, *arguments(folder, tmp_path), capsys=capsys)
    assert str(folder / "init") in message
    assert "finite" in message
    assert not (tmp_path / "log").exists()


def test_lines_of_star_carry_step_and_numbers(
    star_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    call_script("star/train.py", *star_arguments(star_input, tmp_path, *FIVE, "--warmup_steps", 5))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert {"loss", "grad_norm", "learning_rate"} <= set(lines[0])
    assert all(isinstance(value, int | float) for line in lines for value in line.values())
    assert [message for message in caplog.messages if "ends after 5 steps and its warm-up takes 5, " in message]


def test_the_oldest_checkpoints_go_first(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    keep_newest(tmp_path, 8, None)
    keep_newest(tmp_path, 8, 0)
    assert len(list(tmp_path.iterdir())) == 5
    keep_newest(tmp_path, 8, 3)  # 100 is of a later step, so it cannot be what this training has written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    keep_newest(tmp_path, 8, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


@pytest.mark.parametrize("limit", range(1, 9))
def test_as_many_checkpoints_are_kept_as_asked(tmp_path: Path, limit: int) -> None:
    for step in range(1, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        keep_newest(tmp_path, step, limit)
        kept = {int(path.name.removeprefix("checkpoint-")) for path in tmp_path.iterdir()}
        assert kept == set(range(max(1, step - limit + 1), step + 1))


def test_checkpoints_of_another_project_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "models" / "checkpoint-5" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"global_step": 5}')
    with pytest.raises(InputError, match="checkpoints of another training"):
        open_training(tmp_path / "models", {}, overwrite=False)


def test_overwriting_removes_what_was_mined(tmp_path: Path) -> None:
    mined = tmp_path / MINING_FOLDER / "passages.memmap"
    mined.parent.mkdir()
    mined.touch()
    (tmp_path / "config.json").touch()
    assert open_training(tmp_path, {}, overwrite=True) is None
    assert not list(tmp_path.iterdir())
