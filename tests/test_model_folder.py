"""Any encoder, there and back: transformers and sentence-transformers give the same embeddings for our folders."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

from drhard.collection import Collection
from drhard.encoder import Encoder
from drhard.errors import InputError
from drhard.model_folder import load_encoder, save_encoder
from drhard.numbers import DIM
from drhard.pooled import PooledEncoder
from drhard.sentence_modules import Dense as Head
from drhard.sentence_modules import Normalize as Normalized
from drhard.sentence_modules import SentenceModules
from drhard.settings import EncodingSettings
from drhard.trainer import StaticTrainer

import numpy as np
import pytest
import torch
from helpers import (
    KINDS,
    TEXTS,
    WORDS,
    call_script,
    embed_texts,
    refused,
    save_plain,
    save_tiny,
    save_vocabulary,
    snapshot,
    write_collection,
    write_qrels,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from torch import nn
from transformers import AutoModel

LONGEST = {"roberta": 38, "xlm-roberta": 38, "mpnet": 38}  # of 40 positions; the pad id takes two


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    lengths = torch.tensor([9, 3, 7, 2, 9])[:count]
    ids = torch.from_numpy(random.integers(5, WORDS, (count, 9)))
    mask = (torch.arange(9) < lengths[:, None]).long()
    return ids * mask + (1 - mask), mask


def embed(model: Encoder) -> torch.Tensor:
    with torch.no_grad():
        return model(*batch())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_encoders_are_pooled_as_transformers_encodes(
    tmp_path: Path, kind: str, pooling: str, normalize: bool
) -> None:
    folder = save_plain(tmp_path / "plain", kind)
    model = load_encoder(folder, pooling=pooling, normalize=normalize)
    assert isinstance(model, PooledEncoder)
    assert model.longest_sequence == LONGEST.get(kind, 40)
    ids, mask = batch()
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = torch.stack(
        [
            states[0] if pooling == "cls" else states[:length].mean(0)
            for states, length in zip(hidden, mask.sum(1), strict=True)
        ]
    )
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embed(model), expected, atol=1e-5, rtol=0)

    save_encoder(model, tmp_path / "saved", folder)
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(embed(again), embed(model), atol=0, rtol=0)
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer_digest == model.tokenizer_digest is not None


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_gives_the_same_embeddings(tmp_path: Path, kind: str) -> None:
    folder = save_plain(tmp_path / "plain", kind)
    save_encoder(load_encoder(folder, pooling="mean", normalize=True), tmp_path / "saved", folder)
    assert_same_as_sentence_transformers(tmp_path / "saved")
    assert_builds_no_pooler(tmp_path / "saved")


def assert_builds_no_pooler(folder: Path) -> None:
    """Its weights are not in our checkpoints. transformers would warn that they are missing."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert not any("pooler" in name for name, _ in model.named_parameters())


def assert_same_as_sentence_transformers(folder: Path) -> None:
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs.max_seq_length = 24
    np.testing.assert_allclose(theirs.encode(TEXTS), embed_texts(folder, 24), atol=1e-5)


def test_pooling_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = save_plain(tmp_path, "bert")
    ways: list[dict[str, Any]] = [{"pooling": "cls"}, {"pooling": "mean"}, {"pooling": "mean", "normalize": True}]
    assert len({load_encoder(folder, **way).fingerprint() for way in ways}) == 3


def test_a_folder_of_sentence_transformers_with_heads(tmp_path: Path) -> None:
    """Written by sentence-transformers itself, loaded here, saved here, loaded there."""
    folder = save_plain(tmp_path / "plain", "bert")
    torch.manual_seed(5)
    modules = [Transformer(str(folder)), Pooling(16, "cls"), Dense(16, 12), LayerNorm(12), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "q: ", "document": "d: "})
    theirs.save(str(tmp_path / "theirs"))
    ours = load_encoder(tmp_path / "theirs")
    assert (ours.output_embedding_size, ours.normalized) == (12, True)
    assert ours.prompts == {"query": "q: ", "passage": "d: "}
    assert_same_as_sentence_transformers(tmp_path / "theirs")
    save_encoder(ours, tmp_path / "ours", tmp_path / "theirs")
    assert_same_as_sentence_transformers(tmp_path / "ours")
    assert SentenceTransformer(str(tmp_path / "ours"), device="cpu").prompts == {"query": "q: ", "document": "d: "}


def test_robertadot_is_the_same_in_sentence_transformers(tmp_path: Path) -> None:
    start = save_vocabulary(save_tiny(tmp_path / "start"))
    save_encoder(load_encoder(start), tmp_path / "saved", start)
    assert_same_as_sentence_transformers(tmp_path / "saved")
    assert_builds_no_pooler(tmp_path / "saved")


def test_saving_into_a_folder_replaces_its_modules(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "plain", "bert")
    model = load_encoder(folder, pooling="mean", normalize=True)
    save_encoder(model, tmp_path / "saved", folder)
    first = snapshot(tmp_path / "saved")
    save_encoder(model, tmp_path / "saved", folder)
    assert snapshot(tmp_path / "saved") == first


# Trained


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_with_star_and_adore(tmp_path: Path, kind: str) -> None:
    """Two steps of each. What is saved loads here and in sentence-transformers."""
    folder, preprocess = save_plain(tmp_path / "plain", kind), write_collection(tmp_path / "pre", vocabulary=WORDS)
    given = ["--preprocess_dir", preprocess, "--init_path", folder, "--pooling", "mean", "--normalize"]
    star = ["--do_train", "--no_cuda", "--max_steps", 2, "--per_device_train_batch_size", 4, "--report_to", "none"]
    star += ["--max_query_length", 8, "--max_doc_length", 16, "--negatives", "in-batch"]
    star += ["--gradient_checkpointing"] if kind != "mpnet" else ["--chunk_size", 3]
    call_script("star/train.py", *given, *star, "--output_dir", tmp_path / "star")
    start, trained = load_encoder(folder, pooling="mean", normalize=True), load_encoder(tmp_path / "star")
    assert trained.fingerprint() != start.fingerprint()
    assert json.loads((tmp_path / "star" / "training.json").read_text())["score_scale"] == 20
    assert_same_as_sentence_transformers(tmp_path / "star")

    passages = Collection(preprocess, 8, 16).passages
    EncodingSettings(4, torch.device("cpu")).encode(trained, passages, tmp_path / "passages.memmap")
    adore = ["--pembed_path", tmp_path / "passages.memmap", "--neg_topk", 5, "--num_train_epochs", 1]
    adore += ["--per_gpu_batch_size", 3, "--max_seq_length", 8, "--warmup_steps", 0, "--learning_rate", 1e-3]
    places = ["--model_save_dir", tmp_path / "adore", "--log_dir", tmp_path / "log"]
    call_script("adore/train.py", *given[:2], "--init_path", tmp_path / "star", *adore, *places)
    assert load_encoder(tmp_path / "adore" / "epoch-1").fingerprint() != trained.fingerprint()
    assert_same_as_sentence_transformers(tmp_path / "adore" / "epoch-1")


def test_a_stopped_training_of_an_encoder_with_heads_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of the backbone and those of each head are in files of their own."""
    folder, preprocess = with_modules(tmp_path), write_collection(tmp_path / "pre", vocabulary=WORDS)
    star = [
        "--do_train",
        "--no_cuda",
        "--max_steps",
        6,
        "--save_steps",
        2,
        "--report_to",
        "none",
        "--max_doc_length",
        16,
    ]
    star += ["--preprocess_dir", preprocess, "--init_path", folder, "--max_query_length", 8, "--negatives", "in-batch"]
    star += ["--per_device_train_batch_size", 4, "--warmup_steps", 0, "--learning_rate", 1e-2]
    call_script("star/train.py", *star, "--output_dir", tmp_path / "whole")

    def stop(trainer: StaticTrainer, *_: object) -> None:
        keep(trainer, *_)
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt

    keep = StaticTrainer._save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StaticTrainer, "_save_checkpoint", stop)
        call_script("star/train.py", *star, "--output_dir", tmp_path / "stopped")
    call_script("star/train.py", *star, "--output_dir", tmp_path / "stopped")
    assert "resuming from" in capsys.readouterr().out
    for name in ("model", "2_Dense/model", "3_LayerNorm/model"):
        files = [tmp_path / run / f"{name}.safetensors" for run in ("whole", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes() != (folder / f"{name}.safetensors").read_bytes()

    head = tmp_path / "stopped" / "2_Dense" / "model.safetensors"
    shutil.copy(folder / "2_Dense" / "model.safetensors", head)
    sentence = refused("star/train.py", *star, "--output_dir", tmp_path / "stopped", capsys=capsys)
    assert "has a finished model, but 2_Dense/model.safetensors is damaged" in sentence


def test_checkpointing_that_transformers_cannot_do_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--gradient_checkpointing is not supported for mpnet; omit it, or save mem"):
        load_encoder(save_plain(tmp_path, "mpnet"), pooling="cls").activation_checkpointing_enable()


def test_weight_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    model = load_encoder(save_plain(tmp_path, "bert"), pooling="mean")
    spared = model.undecayed()
    assert {name for name, parameter in model.named_parameters() if parameter.dim() == 1} == spared
    published = load_encoder(save_tiny(tmp_path / "dot"))
    assert "norm.weight" not in published.undecayed()  # as the published scripts
    assert "roberta.embeddings.LayerNorm.weight" in published.undecayed()


# Refused


def with_modules(folder: Path, **change: object) -> Path:
    plain = load_encoder(save_plain(folder / "plain", "bert"), pooling="mean")
    heads = [Head(nn.Linear(16, 12)), nn.LayerNorm(12), Normalized()]
    model = PooledEncoder(plain.backbone, SentenceModules(folder / "plain", "mean", heads))
    save_encoder(model, folder / "saved", folder / "plain")
    places = {"pooling": "1_Pooling/config", "dense": "2_Dense/config", "normalize": "4_Normalize/config"}
    for name, content in change.items():
        path = folder / "saved" / f"{places.get(name, name)}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "saved"


def module(kind: str, path: str, package: str = "sentence_transformers.models") -> dict[str, object]:
    return {"idx": 0, "name": path or "0", "path": path, "type": f"{package}.{kind}"}


POOL = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
DENSE = {"in_features": 16, "out_features": 12}
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no list": ({"modules": {}}, "expected a list of modules"),
    "no JSON": ({"modules": "x"}, "not a JSON file"),
    "another order": ({"modules": [module("Pooling", "1_Pooling")]}, "the modules are Pooling; only Transformer"),
    "another module": (
        {"modules": [module("Transformer", ""), module("Pooling", "1_Pooling"), module("CNN", "2_CNN")]},
        "the modules are Transformer, Pooling, CNN; only",
    ),
    "code of its own": ({"modules": [module("Transformer", "", "custom.models")]}, "cannot use the module"),
    "a path outside": ({"modules": [module("Transformer", "../..")]}, "cannot use the module"),
    "max pooling": ({"pooling": POOL | {"pooling_mode_max_tokens": True}}, "only cls or mean can be used"),
    "no pooling": ({"pooling": {"word_embedding_dimension": 16}}, "only cls or mean can be used"),
    "weighted mean": (
        {"pooling": {"embedding_dimension": 16, "pooling_mode": "weightedmean"}},
        "is weightedmean; only cls or mean",
    ),
    "no size": ({"pooling": {"pooling_mode_mean_tokens": True}}, "'word_embedding_dimension' is missing"),
    "prompt left out": (
        {
            "pooling": POOL | {"include_prompt": False},
            "config_sentence_transformers": {"prompts": {"query": "q: "}},
        },
        "leaves the prompt out",
    ),
    "a prompt that is no text": ({"config_sentence_transformers": {"prompts": {"query": 1}}}, "expected a text"),
    "a length of 0": ({"sentence_bert_config": {"max_seq_length": 0}}, "max_seq_length is 0"),
    "two of one name": (
        {"modules": [module("Transformer", ""), module("Pooling", "1_Pooling") | {"name": "0"}]},
        "two modules have the same name",
    ),
    "pooling that is no text": ({"pooling": POOL | {"pooling_mode": [["mean"]]}}, "the pooling is .'mean'.; only"),
    "a number for true": ({"pooling": POOL | {"include_prompt": 0}}, "'include_prompt' is 0, expected true or false"),
    "more in the pooling": ({"pooling": POOL | {"weights": [1]}}, "weights is not known"),
    "an activation in a list": (
        {"dense": DENSE | {"activation_function": []}},
        "'activation_function' is .., expected",
    ),
    "normalized tokens": ({"normalize": {"module_input_name": "token_embeddings"}}, "only the sentence embedding"),
    "another layer": (
        {"sentence_bert_config": {"modality_config": {"text": {"method_output_name": ["hidden_states", 1]}}}},
        "modality_config is .*this cannot be used",
    ),
    "another task": ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "transformer_task is fill-mask"),
    "another config": ({"sentence_bert_config": {"config_args": {"hidden_act": "relu"}}}, "config_args is"),
    "another length for queries": ({"sentence_bert_config": {"query_length": 8}}, "query_length is 8"),
    "another kind of model": (
        {"config_sentence_transformers": {"model_type": "SparseEncoder"}},
        "SparseEncoder, expected",
    ),
    "truncated": ({"config_sentence_transformers": {"truncate_dim": 3}}, "truncate_dim is 3"),
    "half a character": (
        {"config_sentence_transformers": '{"prompts": {"query": "\\ud800"}}'},
        "surrogates not allowed",
    ),
    "no type of model": ({"config": {"vocab_size": 60}}, "'model_type' is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, case: str) -> None:
    change, complaint = REFUSED[case]
    folder = with_modules(tmp_path, **change)
    with pytest.raises(InputError, match=complaint):
        load_encoder(folder)


def test_a_dense_layer_takes_no_memory_before_its_weights_have_its_size(tmp_path: Path) -> None:
    """A gigabyte, and a second to draw its numbers."""
    sizes = {"in_features": DIM.most, "out_features": DIM.most}
    folder = with_modules(tmp_path, pooling=POOL | {"word_embedding_dimension": DIM.most}, dense=sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="the shape of linear.bias is .12,., but config.json asks for"):
        load_encoder(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_length_is_read_where_sentence_transformers_writes_it(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "plain", "bert")
    theirs = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16, "mean")], device="cpu")
    theirs.max_seq_length = 20
    theirs.save(str(tmp_path / "theirs"))
    ours = load_encoder(tmp_path / "theirs")
    save_encoder(ours, tmp_path / "ours", tmp_path / "theirs")
    assert SentenceTransformer(str(tmp_path / "ours"), device="cpu").max_seq_length == 20


def test_files_of_former_names_are_read(tmp_path: Path) -> None:
    folder = with_modules(tmp_path)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    modules = load_encoder(folder).describe()
    assert (modules.max_seq_length, modules.lower_case) == (12, True)


def test_pooling_is_asked_for_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say how to pool its hidden states; give --pooling cls or mean"):
        load_encoder(save_plain(tmp_path / "plain", "mpnet"))
    with pytest.raises(InputError, match="has the pooling mean; omit --pooling and --normalize"):
        load_encoder(with_modules(tmp_path / "modules"), pooling="cls")
    with pytest.raises(InputError, match="has its own head; omit --pooling and --normalize"):
        load_encoder(with_robertadot(tmp_path / "dot"), pooling="cls")


def with_robertadot(folder: Path) -> Path:
    start = save_tiny(folder / "start")
    save_encoder(load_encoder(start), folder / "saved", start)
    return folder / "saved"


PROMPTS = ("--query_prompt", "find: ", "--passage_prompt", "text: ")


@pytest.fixture
def prompted(tmp_path: Path) -> Path:
    """A data root whose tokens have prompts, for the plain encoder beside it."""
    dataset = tmp_path / "root" / "passage" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "collection.tsv").write_text("".join(f"{row}\tword{row} is a thing\n" for row in range(12)))
    for name in ("queries.train.tsv", "queries.dev.small.tsv"):
        (dataset / name).write_text("".join(f"{query}\tword{query}\n" for query in range(6)))
    for name in ("qrels.train.tsv", "qrels.dev.small.tsv"):
        write_qrels(dataset / name, {query: [query] for query in range(6)})
    plain = save_plain(tmp_path / "plain", "bert")
    given = ("--data_type", "passage", "--data_root", tmp_path / "root", "--model_name_or_path", plain, "--threads", 1)
    call_script("preprocess.py", *given, "--max_seq_length", 32, "--max_query_length", 16, *PROMPTS)
    return tmp_path


def test_a_trained_checkpoint_keeps_the_prompts_of_its_texts(prompted: Path) -> None:
    """STAR on a plain encoder, ADORE on that, and the export of both: sentence-transformers puts the prompts."""
    preprocess = prompted / "root" / "passage" / "preprocess"
    star = ["--do_train", "--no_cuda", "--max_steps", 1, "--report_to", "none", "--negatives", "in-batch"]
    lengths = ["--max_query_length", 16, "--max_doc_length", 32]
    pooled = ["--init_path", prompted / "plain", "--pooling", "mean"]
    call_script(
        "star/train.py", *pooled, *star, *lengths, "--preprocess_dir", preprocess, "--output_dir", prompted / "s"
    )
    told = {"query": "find: ", "passage": "text: "}
    assert load_encoder(prompted / "s").prompts == told

    data = ["--data_type", "passage", "--data_root", prompted / "root", "--mode", "dev", "--topk", 5, "--no_cuda"]
    call_script("star/inference.py", *data, *lengths, "--model_dir", prompted / "s", "--output_dir", prompted / "run")
    train_adore(prompted / "s", prompted / "run", preprocess, prompted / "adore")
    assert load_encoder(prompted / "adore" / "epoch-1").prompts == told
    models = ["--query_model", prompted / "adore" / "epoch-1", "--document_model", prompted / "s"]
    assert_exported_with_prompts(models, prompted / "run", prompted / "exported")


def test_adore_on_a_plain_encoder_exports_with_its_pooling_and_prompts(prompted: Path) -> None:
    """The plain document encoder says neither. The query encoder, which learned from its embeddings, does."""
    preprocess, pooled = prompted / "root" / "passage" / "preprocess", ["--pooling", "mean", "--normalize"]
    data = ["--data_type", "passage", "--data_root", prompted / "root", "--mode", "dev", "--topk", 5, "--no_cuda"]
    lengths = ["--max_query_length", 16, "--max_doc_length", 32]
    plain = prompted / "plain"
    call_script("star/inference.py", *data, *lengths, "--model_dir", plain, *pooled, "--output_dir", prompted / "run")
    train_adore(plain, prompted / "run", preprocess, prompted / "adore", *pooled)
    models = ["--query_model", prompted / "adore" / "epoch-1", "--document_model", plain]
    assert_exported_with_prompts(models, prompted / "run", prompted / "exported")


def train_adore(start: Path, run: Path, preprocess: Path, folder: Path, *more: object) -> None:
    given = ["--init_path", start, "--pembed_path", run / "passages.memmap", "--preprocess_dir", preprocess, *more]
    given += ["--neg_topk", 5, "--num_train_epochs", 1, "--warmup_steps", 0, "--max_seq_length", 16]
    call_script("adore/train.py", *given, "--model_save_dir", folder, "--log_dir", folder / "log")


def assert_exported_with_prompts(models: list[object], run: Path, exported: Path) -> None:
    call_script("export.py", *models, "--output_dir", exported)
    model = SentenceTransformer(str(exported), device="cpu")
    assert model.prompts == {"query": "find: ", "document": "text: "}
    assert_builds_no_pooler(exported)
    passages = np.fromfile(run / "passages.memmap", dtype=np.float32).reshape(12, -1)
    found = model.encode_document([f"word{row} is a thing" for row in range(12)])
    np.testing.assert_allclose(found, passages, atol=1e-5)


def test_texts_with_another_prompt_are_refused(prompted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = SentenceTransformer(str(prompted / "plain"), device="cpu", prompts={"query": "ask: ", "document": ""})
    other.save(str(prompted / "other"))
    data = ["--data_type", "passage", "--data_root", prompted / "root", "--mode", "dev", "--topk", 5, "--no_cuda"]
    lengths = ["--max_query_length", 16, "--max_doc_length", 32]
    message = refused(
        "star/inference.py",
        *data,
        *lengths,
        "--model_dir",
        prompted / "other",
        "--output_dir",
        prompted / "x",
        capsys=capsys,
    )
    assert "with the query prompt 'find: ', the model's is 'ask: '" in message


def test_a_model_whose_prompts_are_empty_takes_any(prompted: Path) -> None:
    """sentence-transformers writes empty prompts for models that never had one."""
    SentenceTransformer(str(prompted / "plain"), device="cpu").save(str(prompted / "none"))
    told = json.loads((prompted / "none" / "config_sentence_transformers.json").read_text())["prompts"]
    assert told == {"query": "", "document": ""}
    assert not load_encoder(prompted / "none").prompts
