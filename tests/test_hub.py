"""Checkpoints by name: a local folder, or a model on a hub that is a folder of this machine."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from drhard.errors import InputError
from drhard.hub import find_checkpoint, find_tokenizer
from drhard.tokenizer import RobertaTokenizer

import huggingface_hub
import pytest
from helpers import save_vocabulary, vocabulary

Find = Callable[[str | Path], Path]
each_way = pytest.mark.parametrize("find", [find_checkpoint, find_tokenizer])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models. snapshot_download copies from it."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"

    def download(name: str, allow_patterns: list[str]) -> str:
        if not (hub / name).is_dir():
            raise OSError(f"404 Client Error\n{name} is not there")
        (cache / name).mkdir(parents=True, exist_ok=True)
        for path in (hub / name).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache / name)
        return str(cache / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def upload(hub: Path, name: str, *weights: str) -> None:
    save_vocabulary(hub / name)
    for file in ("config.json", "tokenizer.json", "flax_model.msgpack", *weights):
        (hub / name / file).touch()


@each_way
def test_a_local_folder_is_itself(tmp_path: Path, find: Find) -> None:
    assert find(tmp_path) == find(str(tmp_path)) == tmp_path


@each_way
def test_a_file_is_refused(tmp_path: Path, find: Find) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(InputError, match="model: is a file; give the folder of the checkpoint"):
        find(tmp_path / "model")


@each_way
@pytest.mark.parametrize("name", ["./data/passage/warmup", "/nowhere/warmup", "data/passage/warmup", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(hub: Path, find: Find, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: no such folder"):
        find(name)


@each_way
def test_what_the_hub_lacks_is_one_sentence(hub: Path, find: Find) -> None:
    with pytest.raises(InputError) as error:
        find("nobody/nothing")
    assert str(error.value) == (
        "nobody/nothing: is not a local folder, and cannot be fetched from the hub (404 Client Error); check the name"
    )


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"],
            ["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
    ],
)
def test_a_checkpoint_is_fetched_with_one_form_of_its_weights(hub: Path, there: list[str], fetched: list[str]) -> None:
    name = f"someone/has-{len(there)}"
    upload(hub, name, *there)
    found = sorted(path.name for path in find_checkpoint(name).iterdir())
    assert found == sorted(["config.json", "vocab.json", "merges.txt", *fetched])


def test_only_its_own_files_are_fetched_for_a_tokenizer(hub: Path) -> None:
    upload(hub, "roberta-tiny", "model.safetensors")
    assert sorted(path.name for path in find_tokenizer("roberta-tiny").iterdir()) == ["merges.txt", "vocab.json"]
    assert RobertaTokenizer.from_pretrained("roberta-tiny").vocab == vocabulary()[0]


def test_a_model_with_another_tokenizer_is_refused(hub: Path) -> None:
    (hub / "bert-tiny").mkdir(parents=True)
    (hub / "bert-tiny" / "vocab.txt").touch()
    with pytest.raises(InputError, match=r"^bert-tiny/vocab\.json: no such file; a tokenizer needs vocab\.json and me"):
        RobertaTokenizer.from_pretrained("bert-tiny")
