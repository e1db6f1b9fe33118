"""The encoder: its formula, and checkpoints that are read, refused and written."""

import io
import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drhard.encoder import HalfPrecision, check_finite, digest_weights, embed_groups
from drhard.errors import InputError
from drhard.model_folder import load_encoder, save_encoder
from drhard.roberta_dot import RobertaDot
from drhard.sampling import Grouping

import numpy as np
import pytest
import torch
from helpers import (
    KINDS,
    refused,
    save_plain,
    save_tiny,
    save_vocabulary,
    snapshot,
    tiny_config,
    tiny_model,
    write_collection,
)
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
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


def random_batch(count: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.randint(3, longest + 1, (count, 1))
    mask = (torch.arange(longest) < lengths).long()
    return torch.where(mask.bool(), torch.randint(3, 300, (count, longest)), 1), mask


def gradients(model: RobertaDot, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which every embedding meets every other."""
    model.zero_grad()
    torch.nn.functional.softplus(embeddings @ embeddings.T).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def embed_grouped(model: RobertaDot, ids: torch.Tensor, mask: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    lengths = mask.sum(1)
    rows = grouping.split(lengths.numpy())
    groups = [
        {"input_ids": ids[group, : lengths[group].max()], "attention_mask": mask[group, : lengths[group].max()]}
        for group in rows
    ]
    places = torch.from_numpy(np.concatenate(rows).argsort())
    return embed_groups(model, groups, places, recompute=grouping.chunk_size > 0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
def test_groups_have_the_gradients_of_the_whole_batch(chunk_size: int, recompute: bool) -> None:
    torch.manual_seed(0)
    model, (ids, mask) = tiny_model().double().train(), random_batch(7, 12)  # float32 rounds by the kind of processor
    grouping = Grouping(chunk_size=chunk_size) if recompute else Grouping(call_tokens=chunk_size)
    assert recompute or len(grouping.split(mask.sum(1).numpy())) == (1 if chunk_size == 50 else pytest.approx(4, abs=2))
    whole, grouped = model(ids, mask), embed_grouped(model, ids, mask, grouping)
    torch.testing.assert_close(grouped, whole, rtol=1e-12, atol=1e-12)
    expected, found = gradients(model, whole), gradients(model, grouped)
    assert sum(gradient.abs().sum() > 0 for gradient in expected.values()) > 30
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-12, msg=name)


def test_chunks_are_computed_again_with_the_same_dropout() -> None:
    torch.manual_seed(0)
    model, (ids, mask) = tiny_model(dropout=0.5).train(), random_batch(5, 12)
    longest_first = torch.from_numpy(np.argsort(-mask.sum(1).numpy(), kind="stable"))
    torch.manual_seed(3)
    plain = torch.cat(
        [
            model(ids[rows, : mask[rows].sum(1).max()], mask[rows, : mask[rows].sum(1).max()])
            for rows in longest_first.split(2)
        ]
    )
    expected = gradients(model, plain[longest_first.argsort()])
    torch.manual_seed(3)
    found = gradients(model, embed_grouped(model, ids, mask, Grouping(chunk_size=2)))
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
            embed_grouped(model, ids, mask, Grouping(chunk_size=4))
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
    assert digest_weights(loaded) == digest_weights(model)
    assert loaded.output_embedding_size == 24
    assert not loaded.training
    saved = snapshot(tmp_path / "saved")
    written = {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    written |= {
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    }
    written |= {
        f"{folder}/{name}" for folder in ("2_Dense", "3_LayerNorm") for name in ("config.json", "model.safetensors")
    }
    assert set(saved) == written
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
    assert digest_weights(loaded) == digest_weights(model)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_file_that_is_written_anew_leaves_the_model_as_it_is(tmp_path: Path, name: str) -> None:
    """A checkpoint copied over another, in place, under a long encoding."""
    save_bin(tmp_path, tiny_model()) if name.endswith(".bin") else save_tiny(tmp_path)
    loaded = load_encoder(tmp_path)
    path = tmp_path / name
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(loaded, tiny_model())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    loaded = load_encoder(save_bin(tmp_path, tiny_model().half()))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_digest_tells_the_smallest_change() -> None:
    model, same = tiny_model(seed=5), tiny_model(seed=5)
    assert digest_weights(model) == digest_weights(same)
    with torch.no_grad():
        same.norm.weight[3] = torch.nextafter(same.norm.weight[3], torch.tensor(9.0))
    assert digest_weights(model) != digest_weights(same)


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


def sentence(folder: Path, **options: bool) -> str:
    """What is said of a checkpoint that is refused, without its folder; one line."""
    with pytest.raises(InputError) as error:
        load_encoder(folder, **options)
    message = str(error.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message.removeprefix(str(folder)).lstrip("/: ")


# What config.json says instead -> what is said of it
CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "fewer layers than the weights": ({"num_hidden_layers": 1}, "num_hidden_layers is 1, but the weights have 2"),
    "more layers": ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but the weights have 2"),
    "layers beyond all memory": ({"num_hidden_layers": 2**31 - 1}, "but the weights have 2"),
    "a vocabulary beyond all memory": ({"vocab_size": 2**31 - 1}, "vocab_size is 2147483647, but the weights have 300"),
    "a larger vocabulary": ({"vocab_size": 301}, "vocab_size is 301, but the weights have 300"),
    "another width": ({"hidden_size": 18}, "hidden_size is 18, but the weights have 16"),
    "another intermediate size": ({"intermediate_size": 40}, "intermediate_size is 40, but the weights have 32"),
    "fewer positions": ({"max_position_embeddings": 30}, "max_position_embeddings is 30, but the weights have 34"),
    "another type": ({"type_vocab_size": 2}, "type_vocab_size is 2, but the weights have 1"),
    "another head": ({"output_embedding_size": 8}, "output_embedding_size is 8, but the weights have 16"),
    "no head": ({"output_embedding_size": 0}, "output_embedding_size is 0, expected a whole number from 1"),
    "heads that do not fit": ({"num_attention_heads": 3}, "hidden_size 16 cannot be divided among 3 attention heads"),
    "no attention head": ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number from 1"),
    "a negative size": ({"hidden_size": -16}, "hidden_size is -16, expected a whole number from 1"),
    "a size of many digits": ({"hidden_size": 10**4000}, "hidden_size"),
    "a size as text": ({"hidden_size": "16"}, "'hidden_size' is \"16\", expected a whole number"),
    "a size that is true": ({"num_hidden_layers": True}, "'num_hidden_layers' is true, expected a whole number"),
    "pad null": ({"pad_token_id": None}, "'pad_token_id' is null, expected a whole number"),
    "pad beyond the vocabulary": ({"pad_token_id": 300}, "pad_token_id is 300, beyond the vocabulary of 300"),
    "pad below": ({"pad_token_id": -1}, "pad_token_id is -1, expected a whole number from 0"),
    "pad that leaves no position": ({"pad_token_id": 32}, "leaves no room for <s> and </s>"),
    "unknown activation": ({"hidden_act": "gelo"}, "hidden_act 'gelo' is not an activation function"),
    "no activation": ({"hidden_act": None}, "'hidden_act' is null, expected a text"),
    "epsilon of nothing": ({"layer_norm_eps": 0}, "layer_norm_eps is 0, expected a number above 0"),
    "dropout above all": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5, expected a number from 0 to 1"),
    "no number": ({"layer_norm_eps": float("nan")}, "not a JSON file .NaN is not a number"),
    "a decoder": ({"is_decoder": True}, "is_decoder is True; this encoder needs False"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention is True"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    "T5": ({"model_type": "t5"}, "checkpoint of type 't5' .*only bert, roberta, xlm-roberta"),
    "BERT": ({"model_type": "bert"}, "lacks the weights bert.embeddings.word_embeddings.weight"),
    "XLM-R": ({"model_type": "xlm-roberta"}, "this encoder does not have: embeddingHead.bias"),
    "no type at all": ({"model_type": 1}, "'model_type' is 1, expected a text"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    changes, complaint = CONFIGS[case]
    rewrite_config(save_tiny(tmp_path), **changes)
    assert re.search(complaint, sentence(tmp_path))


def test_what_else_a_config_says_has_no_part_in_the_embeddings(tmp_path: Path) -> None:
    rewrite_config(
        save_tiny(tmp_path),
        attn_implementation="none",
        _attn_implementation="eager",
        output_attentions=True,
        output_hidden_states=True,
        return_dict=False,
        dtype="float16",
        torch_dtype=3,
        id2label=7,
        pruned_heads={},
        quantization_config={"quant_method": "none"},
        gradient_checkpointing=True,
        transformers_weights="other",
        chunk_size_feed_forward=5,
        position_embedding_type="absolute",
        auto_map={"AutoModel": "code.Model"},
    )
    loaded, (ids, mask) = load_encoder(tmp_path), random_batch(5, 12)
    assert loaded.config._attn_implementation == tiny_model().config._attn_implementation
    torch.testing.assert_close(loaded(ids, mask), tiny_model()(ids, mask), rtol=0, atol=0)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def put_bin(content: object) -> Callable[[Path], object]:
    """In place of the safetensors."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return damage


def put_bytes_as_bin(content: bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def zip_of(name: str, content: str) -> bytes:
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, left: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * left))


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: change_weights(folder, change)


def tiny_weights() -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in tiny_model().state_dict().items()}


# Damage -> what is said of it
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config cut off": (put("config.json", "{"), "config.json: not a JSON file"),
    "config a list": (put("config.json", "[]"), "config.json: expected a JSON object, found a list"),
    "config too deep": (put("config.json", "[" * 100_000), "config.json: not a JSON file .nested too deep"),
    "config names a field twice": (
        lambda folder: put("config.json", (folder / "config.json").read_text().replace("{", '{"vocab_size": 9,', 1))(
            folder
        ),
        "the field 'vocab_size' appears twice",
    ),
    "config without sizes": (put("config.json", '{"model_type": "roberta"}'), "the field 'vocab_size' is missing"),
    "config empty": (put("config.json", ""), "config.json: is empty"),
    "config a pointer": (put("config.json", LFS), "config.json: is a pointer of Git LFS.*git lfs pull"),
    "no config": (remove("config.json"), "config.json is missing"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "weights empty": (put("model.safetensors", b""), "model.safetensors: is empty"),
    "weights cut off early": (cut("model.safetensors", 0.02), "model.safetensors: damaged"),
    "weights cut off late": (cut("model.safetensors", 0.99), "model.safetensors: damaged"),
    "weights a pointer": (put("model.safetensors", LFS), "model.safetensors: is a pointer of Git LFS"),
    "weights a web page": (
        put("model.safetensors", "\n<!DOCTYPE html><html>404</html>"),
        "model.safetensors: is a web page",
    ),
    "weights a text": (
        put("model.safetensors", "these are no weights"),
        "model.safetensors: damaged, or not a safeten",
    ),
    "weights a folder": (
        lambda folder: (remove("model.safetensors")(folder), (folder / "model.safetensors").mkdir()),
        "has no weights",
    ),
    "safetensors by another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin: damaged",
    ),
    "a weight more in a layer": (
        with_weights(lambda weights: weights.update({"roberta.encoder.layer.1.more.weight": torch.ones(3)})),
        r"that this encoder does not have: roberta\.encoder\.layer\.1\.more\.weight",
    ),
    "weights of another model beside": (
        with_weights(lambda weights: weights.update(centroids=torch.ones(3), rotation=torch.ones(3))),
        "that this encoder does not have: centroids, rotation;",
    ),
    "names of DataParallel": (
        with_weights(lambda weights: [weights.update({f"module.{name}": weights.pop(name)}) for name in [*weights]]),
        r"names of its weights begin with 'module\.'",
    ),
    "names of BERT": (
        with_weights(
            lambda weights: [weights.update({name.replace("ro", "", 1): weights.pop(name)}) for name in [*weights]]
        ),
        "lacks the weights roberta",
    ),
    "another shape": (
        with_weights(lambda weights: weights.update({"norm.bias": torch.ones(17)})),
        r"the shape of norm\.bias is \(17,\)",
    ),
    "whole numbers": (
        with_weights(lambda weights: weights.update({"norm.bias": torch.ones(16).long()})),
        r"norm\.bias has the type int64",
    ),
    "not a number": (
        with_weights(lambda weights: weights["norm.bias"].fill_(float("nan"))),
        r"the weights of norm\.bias are not finite; the checkpoint is damaged",
    ),
    "bin a text": (put_bytes_as_bin(b"these are no weights"), "pytorch_model.bin: damaged, or"),
    "bin empty": (put_bytes_as_bin(b""), "pytorch_model.bin: is empty"),
    "bin a pointer": (put_bytes_as_bin(LFS.encode()), "pytorch_model.bin: is a pointer of Git LFS"),
    "bin another zip": (put_bytes_as_bin(zip_of("readme.txt", "hello")), "pytorch_model.bin: damaged, or not a"),
    "bin a pickle": (put_bytes_as_bin(pickle.dumps({"norm.bias": [1.0]})), "pytorch_model.bin: damaged, or"),
    "bin a list": (put_bin([torch.ones(2)]), "pytorch_model.bin: holds a list, expected a dict of names and weights"),
    "bin wrapped": (
        put_bin({"state_dict": {"norm.bias": torch.ones(2)}, "epoch": 3}),
        "holds more than weights: 'state_dict'",
    ),
    "bin of numbers": (put_bin({1: torch.ones(2)}), "holds more than weights: '1'"),
    "bin with a weight that is one number": (
        lambda folder: put_bin(tiny_weights() | {"norm.bias": torch.ones(1).expand(16)})(folder),
        r"norm\.bias is not stored in full",
    ),
    "bin with a sparse weight": (
        lambda folder: put_bin(tiny_weights() | {"norm.bias": torch.ones(16).to_sparse()})(folder),
        r"norm\.bias is not stored in full",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_checkpoints_are_refused(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one sentence, with nothing in front of it."""
    damage, complaint = DAMAGES[case]
    damage(save_tiny(tmp_path))
    capsys.readouterr()
    for fresh_head in (False, True):
        assert re.search(complaint, sentence(tmp_path, fresh_head=fresh_head))
    assert capsys.readouterr() == ("", "")


def test_truncated_bin_is_refused(tmp_path: Path) -> None:
    save_bin(tmp_path, tiny_model())
    os.truncate(tmp_path / "pytorch_model.bin", 5000)
    assert "pytorch_model.bin: damaged" in sentence(tmp_path)


def shard(folder: Path) -> Path:
    """Spread a checkpoint's weights over two files, as transformers does for large ones."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    for place in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == place}, folder / place, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_weights_in_several_files(tmp_path: Path) -> None:
    assert equal(load_encoder(shard(save_tiny(tmp_path))), tiny_model())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert sentence(tmp_path).startswith("model-00002-of-00002.safetensors: no such file of weights, although")
    for places in ({"norm.bias": "../other.safetensors"}, {"norm.bias": 3}, {}, {"norm.bias": "config.json"}):
        put("model.safetensors.index.json", json.dumps({"weight_map": places}))(tmp_path)
        assert re.match(r"model\.safetensors\.index\.json: expected|config\.json: no such", sentence(tmp_path))
    put("model.safetensors.index.json", "[]")(tmp_path)
    assert "expected a JSON object" in sentence(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_no_mutation_makes_it_stumble(tmp_path: Path, name: str) -> None:
    """Each is read or refused in one sentence."""
    save_tiny(tmp_path)
    if name == "pytorch_model.bin":
        put_bin(tiny_weights())(tmp_path)
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(5)
    refusals = 0
    for _ in range(60):
        content = bytearray(whole)
        place = int(random.integers(min(len(content), 2000)))
        match random.integers(4):
            case 0:
                content[place] ^= 1 << int(random.integers(8))
            case 1:
                del content[place : place + int(random.integers(1, 30))]
            case 2:
                content[place:place] = random.bytes(4)
            case _:
                del content[place:]
        (tmp_path / name).write_bytes(content)
        try:
            load_encoder(tmp_path)
        except InputError as error:
            refusals += 1
            assert str(error).startswith(str(tmp_path))
            assert "\n" not in str(error)
    assert refusals > 20


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
    assert str(error.value).startswith(f"{tmp_path}/pytorch_model.bin: damaged, or holds more than weights")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", ["star/inference.py", "star/prepare_hardneg.py", "adore/inference.py"])
def test_dot_in_front_of_a_name_means_a_folder(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_collection(tmp_path / "passage" / "preprocess")
    words: list[object] = ["--mode", "train", "--model_dir", "./typo"]
    if script == "adore/inference.py":
        words += ["--preprocess_dir", folder, "--output_dir", tmp_path, "--dmemmap_path", tmp_path]
    else:
        words += ["--data_type", "passage", "--data_root", tmp_path]
    assert "./typo: no such folder" in refused(script, *words, capsys=capsys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_half_precision_are_as_near_as_autocast(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = load_encoder(save_plain(tmp_path, kind), pooling="mean")
    before, (ids, mask) = model.fingerprint(), random_batch(20, 12)
    ids = ids % 60
    half = HalfPrecision(model, dtype)
    with torch.no_grad():
        exact, found = model(ids, mask), half(ids, mask)
        with torch.autocast("cpu", dtype):
            automatic = model(ids, mask).float()
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().mean() < 2 * (automatic - exact).abs().mean()
    assert model.fingerprint() == before


def test_half_precision_casts_all_but_layer_norms_and_the_head_and_only_once() -> None:
    half = HalfPrecision(tiny_model(), torch.bfloat16)
    for name, parameter in half.model.named_parameters():
        in_float32 = "LayerNorm" in name or name.startswith(("embeddingHead.", "norm."))
        assert parameter.dtype == (torch.float32 if in_float32 else torch.bfloat16), name
    casts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                casts.append(args[0])
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Casts():
        half(torch.tensor([[0, 7, 9, 2]]))
    weights = {parameter.data_ptr() for parameter in half.parameters()}
    assert casts
    assert not any(tensor.data_ptr() in weights for tensor in casts)


@pytest.mark.parametrize("values", [(float("nan"), 0), (float("inf"), 0), (float("inf"), -float("inf")), (3e38, 3e38)])
def test_weights_that_are_not_finite(values: tuple[float, float]) -> None:
    """Finite weights whose sum is not are fine."""
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[1, :2] = torch.tensor(values)
    if np.isfinite(values).all():
        check_finite(model, "step 7", "stop")
        return
    with pytest.raises(InputError, match="^step 7: the weights of weight are not finite; stop$"):
        check_finite(model, "step 7", "stop")
