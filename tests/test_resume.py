"""A training that was stopped and is run again ends with the very weights of one that was not."""

import contextlib
import os
import signal
from pathlib import Path

import drhard.adore
from drhard.adore import AdoreOutput, AdoreSettings, AdoreTraining
from drhard.checkpoints import MINING_FOLDER, RECORD_FILE, open_training
from drhard.errors import InputError
from drhard.qrels import read_relevant
from drhard.sampling import StarDataset
from drhard.search import ExactIndex
from drhard.star import StarTrainer
from drhard.tokens import TokenMemmap, query_name

import numpy as np
import pytest
import torch
from helpers import call_script, refused, save_tiny, tiny_model, write_collection
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ADORE: 10 queries in batches of 4, three steps an epoch, an update every two of twelve

SETTINGS = AdoreSettings(
    neg_topk=5, metric_cut=4, batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2, warmup_steps=1, epochs=4
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


def adore(
    collection: Path, folder: Path, at: int | None = None, stop: type[BaseException] = Killed,
    settings: AdoreSettings = SETTINGS, queries: int = QUERIES, documents: int = DOCUMENTS, weights: int = 0,
) -> int:  # fmt: skip
    """Train, until step ``at`` if one is given; return how many steps were taken."""
    vectors = np.random.default_rng(0).normal(size=(documents, 16)).astype(np.float32)
    index = StoppingIndex(vectors, at, stop)
    relevant = read_relevant(collection / "train-qrel.tsv")
    training = AdoreTraining(
        model=tiny_model(seed=weights, dropout=0.2),
        queries=TokenMemmap(collection, query_name("train"), 8),
        relevant={qid: pids for qid, pids in relevant.items() if qid < queries},
        documents=vectors,
        settings=settings,
        output=AdoreOutput(folder / "models", folder / "log", tokenizer_from="", save_steps=5, logging_steps=2),
    )
    training.resume()
    with contextlib.suppress(*([] if at is None else [stop])):
        training.run(index)
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
    collection: Path, tmp_path: Path, unbroken: dict[str, Weights], at: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "written often":
        monkeypatch.setattr(drhard.adore, "STATE_SECONDS", 0)
    adore(collection, tmp_path, at, stop=Killed)
    taken = adore(collection, tmp_path)
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
        {"settings": {"learning_rate": 2e-2}}, {"settings": {"seed": 1}}, {"settings": {"metric_cut": None}},
        {"settings": {"batch_size": 5}}, {"settings": {"epochs": 5}}, {"settings": {"index": "PQ4x4"}},
        {"queries": 9}, {"documents": 31}, {"weights": 1},
    ],
    ids=str,
)  # fmt: skip
def test_adore_with_other_settings_is_refused(collection: Path, tmp_path: Path, changed: dict) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    options = changed | (
        {"settings": AdoreSettings(**{**vars(SETTINGS), **changed["settings"]})} if "settings" in changed else {}
    )
    with pytest.raises(InputError) as error:
        adore(collection, tmp_path, **options)
    assert str(error.value).startswith(f"{tmp_path / 'models'}: ")


def test_damaged_state_is_refused(collection: Path, tmp_path: Path) -> None:
    adore(collection, tmp_path, 5, stop=KeyboardInterrupt)
    state = tmp_path / "models" / drhard.adore.STATE_FILE
    os.truncate(state, 3000)
    with pytest.raises(InputError, match=drhard.adore.STATE_FILE) as error:
        adore(collection, tmp_path)
    assert "\n" not in str(error.value)


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_state_cannot_run_code(collection: Path, tmp_path: Path) -> None:
    state, trace = tmp_path / "models" / drhard.adore.STATE_FILE, tmp_path / "trace"
    state.parent.mkdir()
    torch.save({"step": Command(f"touch '{trace}'")}, state)
    with pytest.raises(InputError, match=drhard.adore.STATE_FILE):
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
        "--do_train", "--max_query_length", 6, "--max_doc_length", 10, "--preprocess_dir", star_input / "preprocess",
        "--hardneg_path", star_input / "hard.json", "--init_path", star_input / "init",
        "--output_dir", folder / "models", "--logging_dir", folder / "log", "--per_device_train_batch_size", 4,
        "--num_train_epochs", 3, "--learning_rate", 1e-2, "--warmup_steps", 2, "--logging_steps", 2, "--save_steps", 2,
        "--no_cuda", *more,
    ]  # fmt: skip


def stop_star(monkeypatch: pytest.MonkeyPatch, star_input: Path, folder: Path, steps: int, *more: object) -> None:
    """Run star/train.py and press Ctrl-C after so many steps."""
    taken = 0
    train = StarTrainer.training_step

    def counted(self: StarTrainer, *arguments: object, **options: object) -> torch.Tensor:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return train(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StarTrainer, "training_step", counted)
        with pytest.raises(SystemExit) as ended:
            call_script("star/train.py", *star_arguments(star_input, folder, *more))
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
    draw = StarDataset.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            StarDataset, "__getitem__", lambda self, index: drawn.append((int(self.epoch), index)) or draw(self, index)
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
    draw = StarDataset.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(StarDataset, "__getitem__", lambda self, index: drawn.append(index) or draw(self, index))
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD_FILE]
