"""The encoder: its formula, and checkpoints that are read, refused and written."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from drhard.encoder import RobertaDot, embed_in_chunks, for_cpu, load_encoder, save_encoder, weights_digest
from drhard.errors import InputError

import numpy as np
import pytest
import torch
from helpers import save_tiny, save_vocabulary, snapshot, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import RobertaForMaskedLM, RobertaModel

HEAD = ("embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias")


def save_bin(folder: Path, model: RobertaDot, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint as the published project does: all weights in ``pytorch_model.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(dict(model.state_dict()) | (extra or {}), folder / "pytorch_model.bin")
    return folder


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("size", [None, 24])
def test_embedding_is_the_formula(size: int | None) -> None:
    model = tiny_model(seed=1, **({"output_embedding_size": size} if size else {}))
    ids = torch.tensor([[0, 7, 9, 2], [0, 30, 2, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        found = model(ids, mask).numpy()
        hidden = model.roberta(ids, mask, return_dict=True).last_hidden_state[:, 0].double().numpy()
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    projected = hidden @ weights["embeddingHead.weight"].T + weights["embeddingHead.bias"]
    centred = projected - projected.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    assert found.shape == (2, size or 16)
    np.testing.assert_allclose(found, normed * weights["norm.weight"] + weights["norm.bias"], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = tiny_model()
    alone = model(torch.tensor([[0, 7, 9, 2]]), torch.ones(1, 4, dtype=torch.int64))
    padded = model(torch.tensor([[0, 7, 9, 2, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0, 0, 0]]))
    torch.testing.assert_close(alone, padded, rtol=1e-5, atol=1e-5)


def test_onednn_gives_the_same_and_leaves_the_model_alone() -> None:
    model, (ids, mask) = tiny_model(), random_batch(5, 12)
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        torch.testing.assert_close(for_cpu(model)(ids, mask), model(ids, mask), rtol=1e-5, atol=1e-5)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[name]) == old and torch.equal(after[name], value) for name, (old, value) in before.items())


def random_batch(count: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.randint(3, longest + 1, (count, 1))
    mask = (torch.arange(longest) < lengths).long()
    return torch.where(mask.bool(), torch.randint(3, 300, (count, longest)), 1), mask


def gradients(model: RobertaDot, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which every embedding meets every other."""
    model.zero_grad()
    torch.nn.functional.softplus(embeddings @ embeddings.T).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
def test_chunks_have_the_gradients_of_the_whole_batch(chunk_size: int) -> None:
    torch.manual_seed(0)
    model, (ids, mask) = tiny_model().double().train(), random_batch(7, 12)  # float32 rounds by the kind of processor
    whole, chunks = model(ids, mask), embed_in_chunks(model, ids, mask, chunk_size)
    torch.testing.assert_close(chunks, whole, rtol=1e-12, atol=1e-12)
    expected, found = gradients(model, whole), gradients(model, chunks)
    assert sum(gradient.abs().sum() > 0 for gradient in expected.values()) > 30
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-12, msg=name)


def test_chunks_are_computed_again_with_the_same_dropout() -> None:
    torch.manual_seed(0)
    model, (ids, mask) = tiny_model(dropout=0.5).train(), random_batch(5, 12)
    longest_first = mask.sum(1).argsort(descending=True)
    torch.manual_seed(3)
    plain = torch.cat([model(ids[rows, : mask[rows].sum(1).max()], mask[rows, : mask[rows].sum(1).max()])
                       for rows in longest_first.split(2)])  # fmt: skip
    expected = gradients(model, plain[longest_first.argsort()])
    torch.manual_seed(3)
    found = gradients(model, embed_in_chunks(model, ids, mask, 2))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_no_more_is_kept_for_more_chunks() -> None:
    """Until the gradient comes, of each chunk only what goes in and the embeddings."""
    model = tiny_model().train()
    kept = []
    for count in (4, 40):
        ids, mask = random_batch(count, 12)
        sizes: list[int] = []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embed_in_chunks(model, ids, mask, 4)
        kept.append(sum(sizes))
    assert kept[1] - kept[0] < 10_000  # one layer of one chunk is more


def test_parameter_names_are_the_published_ones() -> None:
    names = {name for name, _ in tiny_model().named_parameters()}
    assert set(HEAD) <= names
    assert all(name.startswith("roberta.") for name in names - set(HEAD))
    assert "roberta.encoder.layer.1.attention.self.query.weight" in names
    assert not any("pooler" in name for name in names)


def test_round_trip(tmp_path: Path) -> None:
    model = tiny_model(seed=3, output_embedding_size=24)
    vocabulary = save_vocabulary(tmp_path / "base")
    save_encoder(model, tmp_path / "saved", vocabulary)
    loaded = load_encoder(tmp_path / "saved")
    assert equal(loaded, model)
    assert weights_digest(loaded) == weights_digest(model)
    assert loaded.output_embedding_size == 24
    assert not loaded.training
    saved = snapshot(tmp_path / "saved")
    assert set(saved) == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert saved["vocab.json"] == (vocabulary / "vocab.json").read_bytes()
    assert saved["merges.txt"] == (vocabulary / "merges.txt").read_bytes()
    for path in (tmp_path / "saved").iterdir():
        assert path.stat().st_mode & stat.S_IROTH, path  # a colleague can read it


def test_saving_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model.config, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_encoder(model, tmp_path / "saved", "")
    assert snapshot(tmp_path / "saved") == {}


def test_plain_transformers_reads_what_is_saved(tmp_path: Path) -> None:
    model = tiny_model(seed=3)
    save_encoder(model, tmp_path, "")
    roberta, info = RobertaModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert equal(roberta, model.roberta)


def test_published_bin_is_read_and_its_extra_keys_are_ignored(tmp_path: Path) -> None:
    model = tiny_model(seed=4)
    extra = {
        "roberta.embeddings.position_ids": torch.arange(34)[None],
        "roberta.pooler.dense.weight": torch.randn(16, 16),
        "roberta.pooler.dense.bias": torch.randn(16),
        "lm_head.bias": torch.randn(300),
    }
    loaded = load_encoder(save_bin(tmp_path, model, extra))
    assert equal(loaded, model)
    assert weights_digest(loaded) == weights_digest(model)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    loaded = load_encoder(save_bin(tmp_path, tiny_model().half()))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_digest_tells_the_smallest_change() -> None:
    model, same = tiny_model(seed=5), tiny_model(seed=5)
    assert weights_digest(model) == weights_digest(same)
    with torch.no_grad():
        same.norm.weight[3] = torch.nextafter(same.norm.weight[3], torch.tensor(9.0))
    assert weights_digest(model) != weights_digest(same)


@pytest.mark.parametrize("kind", ["roberta", "masked language model"])
def test_fresh_head(tmp_path: Path, kind: str) -> None:
    """roberta-base has no head: training starts one, retrieval refuses."""
    torch.manual_seed(0)
    base = RobertaModel(tiny_config()) if kind == "roberta" else RobertaForMaskedLM(tiny_config())
    base.save_pretrained(tmp_path)
    model = load_encoder(tmp_path, fresh_head=True)
    roberta = base if kind == "roberta" else base.roberta
    reference = {name: value for name, value in roberta.state_dict().items() if not name.startswith("pooler")}
    assert all(torch.equal(value, model.roberta.state_dict()[name]) for name, value in reference.items())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.embeddingHead.weight.std() > 0
    assert (model.norm.weight == 1).all()
    with pytest.raises(InputError, match=r"lacks the weights embeddingHead\.bias"):
        load_encoder(tmp_path)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name, fresh_head",
    [
        ("norm.weight", False),
        ("norm.weight", True),  # three quarters of a head are no checkpoint without one
        ("roberta.encoder.layer.1.output.dense.bias", True),
        ("roberta.embeddings.word_embeddings.weight", False),
    ],
)
def test_missing_weights_are_named(tmp_path: Path, name: str, fresh_head: bool) -> None:
    change_weights(save_tiny(tmp_path), lambda weights: weights.pop(name))
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path, fresh_head=fresh_head)
    assert str(error.value).startswith(f"{tmp_path}: the checkpoint lacks the weights {name}")


def rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: rewrite_config(folder, intermediate_size=40),
        lambda folder: rewrite_config(folder, num_attention_heads=3),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        lambda folder: os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 50),
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    ],
    ids=[
        "other shapes", "impossible config", "config cut off", "config a list", "no config", "no weights",
        "empty weights", "weights cut off early", "weights cut off late", "not a bin",
    ],
)  # fmt: skip
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(save_tiny(tmp_path))
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_truncated_bin_is_refused(tmp_path: Path) -> None:
    save_bin(tmp_path, tiny_model())
    os.truncate(tmp_path / "pytorch_model.bin", 5000)
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        load_encoder(tmp_path / "none")


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("new_format", [True, False])
def test_bin_cannot_run_code(tmp_path: Path, new_format: bool) -> None:
    model, trace = tiny_model(), tmp_path / "trace"
    save_bin(tmp_path, model)
    weights = dict(model.state_dict()) | {"norm.extra": Command(f"touch '{trace}'")}
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path)
    assert not trace.exists()
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./data/passage/warmup", "/nowhere/warmup", "data/passage/warmup"])
def test_missing_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_encoder(name)
