"""Pretrained models: folders with ``config.json``, weights and tokenizer files. A model is built after all checks."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from drhard.errors import InputError, reason_of
from drhard.files import read_object
from drhard.hub import CONFIG_FILE, WEIGHTS_FILES
from drhard.numbers import COUNT, EPSILON, FRACTION, NATURAL, Range

import torch
from safetensors.torch import load_file
from transformers import RobertaConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

MODEL_TYPES = ("roberta",)

_HINT = "does it belong to this checkpoint, and is it complete?"
_DIM = Range(1, 2**14)  # dimensions of an embedding
# The fields of config.json that decide an embedding, with their types and ranges. Other fields are ignored.
_REQUIRED: dict[str, tuple[type, Range | None]] = {
    "vocab_size": (int, COUNT),
    "hidden_size": (int, COUNT),
    "num_hidden_layers": (int, COUNT),
    "num_attention_heads": (int, COUNT),
    "intermediate_size": (int, COUNT),
    "max_position_embeddings": (int, COUNT),
    "type_vocab_size": (int, COUNT),
    "hidden_act": (str, None),
    "layer_norm_eps": (float, EPSILON),
}
_OPTIONAL: dict[str, tuple[type, Range | None]] = {
    "pad_token_id": (int, NATURAL),
    "hidden_dropout_prob": (float, FRACTION),
    "attention_probs_dropout_prob": (float, FRACTION),
    "initializer_range": (float, FRACTION),
}
_NULLABLE = {"output_embedding_size": _DIM, "bos_token_id": NATURAL, "eos_token_id": NATURAL}
_OTHERWISE = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
# Sizes that the weights show as well: field -> (name of a weight, its dimension).
_TOLD = {
    "vocab_size": ("roberta.embeddings.word_embeddings.weight", 0),
    "hidden_size": ("roberta.embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("roberta.embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("roberta.embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("roberta.encoder.layer.0.intermediate.dense.weight", 0),
    "output_embedding_size": ("embeddingHead.weight", 0),
}
_LAYER = re.compile(r"roberta\.encoder\.layer\.(\d+)\.")
_UNUSED = re.compile(
    r"roberta\.embeddings\.(position_ids|token_type_ids)$"  # counters, not learned
    r"|roberta\.pooler\.|(lm_head|classifier|classification_head|qa_outputs)\b"  # heads for other tasks
)


def read_config(folder: Path) -> RobertaConfig:
    """Read ``config.json``. Keep only the fields that decide the embeddings.

    Raises:
        InputError: the file is missing or damaged, or it describes another kind of model, or one that cannot be built.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: {CONFIG_FILE} is missing; a checkpoint is {CONFIG_FILE} and weights")
    _refuse_stand_in(path)
    model_type = read_object(path, {}, _HINT, {"model_type": str}).get("model_type", MODEL_TYPES[0])
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{folder}: is a checkpoint of type {model_type[:40]!r} ({CONFIG_FILE}, model_type); "
            f"only {' and '.join(MODEL_TYPES)} can be used"
        )
    bounded = _REQUIRED | _OPTIONAL
    content = read_object(
        path,
        {name: kind for name, (kind, _) in _REQUIRED.items()},
        _HINT,
        {name: kind for name, (kind, _) in _OPTIONAL.items()}
        | dict.fromkeys(_NULLABLE, (int, type(None)))
        | {name: type(value) for name, value in _OTHERWISE.items()},
    )
    for name, expected in _OTHERWISE.items():
        if content.get(name, expected) != expected:
            raise InputError(f"{path}: {name} is {content[name]!r}; this encoder needs {expected!r}")
    taken = {name: content[name] for name in (*bounded, *_NULLABLE) if content.get(name) is not None}
    for name, value in taken.items():
        kind, bound = bounded.get(name) or (int, _NULLABLE[name])
        if bound is not None:
            bound.check(f"{path}: {name}", value)
        taken[name] = kind(value)
    with quiet_transformers():
        config = RobertaConfig(**taken)
    _check_config(config, path)
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and tables. This module checks what they warn of."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_config(config: RobertaConfig, path: Path) -> None:
    """Raise InputError unless the sizes fit each other."""
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{path}: hidden_size {config.hidden_size} cannot be divided among {config.num_attention_heads} "
            "attention heads (num_attention_heads)"
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name) is not None and getattr(config, name) >= config.vocab_size:
            raise InputError(
                f"{path}: {name} is {getattr(config, name)}, beyond the vocabulary of {config.vocab_size} (vocab_size)"
            )
    if find_longest_sequence(config) < 2:
        raise InputError(
            f"{path}: max_position_embeddings {config.max_position_embeddings} leaves no room for <s> and </s> "
            f"after pad_token_id {config.pad_token_id}"
        )
    if config.hidden_act not in ACT2FN:
        raise InputError(f"{path}: hidden_act {config.hidden_act[:40]!r} is not an activation function of transformers")


def find_longest_sequence(config: RobertaConfig) -> int:
    """Return the most tokens that the model takes. RoBERTa does not use the positions up to the pad id."""
    return int(config.max_position_embeddings - config.pad_token_id - 1)


# Weights


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read an encoder's weights from a checkpoint, under the names that :class:`RobertaDot` has for them.

    Raises:
        InputError: the folder has no weights, or a file of weights is missing, damaged, or holds anything else.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in find_weights_files(folder):
        _refuse_stand_in(path)
        weights |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    if any(name.startswith("module.") for name in weights):
        raise InputError(
            f"{folder}: the names of its weights begin with 'module.', as DataParallel writes them; "
            "save the state_dict of model.module instead"
        )
    if not any(name.startswith("roberta.") for name in weights):  # saved from a plain RobertaModel
        weights = {
            f"roberta.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name: weight
            for name, weight in weights.items()
        }
    return {name: weight for name, weight in weights.items() if not _UNUSED.match(name)}


def find_weights_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights: one file, or those that an index names. Raises InputError if none."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = read_object(index, {"weight_map": dict}, _HINT)["weight_map"].values()
            if not shards or not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
                raise InputError(f"{index}: expected the name of a file in this folder for each weight")
            paths = [folder / shard for shard in sorted(set(shards))]
            for path in paths:
                if path.suffix not in (".safetensors", ".bin") or not path.is_file():
                    raise InputError(f"{path}: no such file of weights, although {index.name} names it; {_HINT}")
            return paths
    raise InputError(f"{folder}: has no weights ({' or '.join(WEIGHTS_FILES)}); is the download complete?")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # safetensors' own type, and others where torch lacks a type of numbers
        raise InputError(f"{path}: damaged, or not a safetensors file ({reason_of(error)})") from None


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except pickle.UnpicklingError:  # torch's own message advises to read the file anyway
        raise InputError(f"{path}: damaged, or holds more than weights") from None
    except Exception as error:  # what torch raises depends on the damage
        raise InputError(f"{path}: damaged, or not a PyTorch file ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a dict of names and weights")
    for name, weight in content.items():
        if not (isinstance(name, str) and isinstance(weight, torch.Tensor)):
            raise InputError(f"{path}: holds more than weights: {str(name)[:60]!r} is a {type(weight).__name__}")
        if not _is_whole(weight):
            raise InputError(f"{path}: {name[:80]} is not stored in full")
    return content


def _is_whole(weight: torch.Tensor) -> bool:
    """Return whether a tensor stores every number. Its copy then takes no more memory than the file has bytes."""
    plain = weight.layout == torch.strided and weight.device.type == "cpu" and not weight.is_quantized
    return plain and weight.untyped_storage().nbytes() >= weight.numel() * weight.element_size()


_STAND_INS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file; fetch the file with 'git lfs pull'"),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page, not the file; download it again"),
)


def _refuse_stand_in(path: Path) -> None:
    """Raise InputError if the file is empty, a web page or a pointer of Git LFS: signs of a failed download."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"{path}: is empty; is the download complete?")
    for pattern, sentence in _STAND_INS:
        if re.match(pattern, start, re.IGNORECASE):
            raise InputError(f"{path}: {sentence}")


# Config and weights together


def check_sizes(folder: Path, config: RobertaConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError unless ``config`` gives the sizes that the weights have.

    Otherwise a damaged config could make a model of any size. Weights that are missing are not compared.
    """
    layers = {match[1] for match in map(_LAYER.match, weights) if match}
    told = {"num_hidden_layers": len(layers)} | {
        field: weights[name].shape[dimension]
        for field, (name, dimension) in _TOLD.items()
        if name in weights and weights[name].dim() == 2
    }
    for field, found in told.items():
        said = embedding_size(config) if field == "output_embedding_size" else getattr(config, field)
        if found and said != found:
            raise InputError(f"{folder / CONFIG_FILE}: {field} is {said}, but the weights have {found}")
    if not told.keys() >= {"hidden_size", "max_position_embeddings", "type_vocab_size", "intermediate_size"}:
        raise InputError(f"{folder}: {_lacks([name for name, _ in _TOLD.values() if name not in weights])}")


def embedding_size(config: RobertaConfig) -> int:
    """Return the number of dimensions of an embedding."""
    return int(getattr(config, "output_embedding_size", None) or config.hidden_size)


def check_names_and_shapes(
    folder: Path, weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], can_be_new: Sequence[str]
) -> None:
    """Raise InputError unless ``weights`` have the names and shapes of ``expected``.

    Args:
        can_be_new: weights that may be missing, if all of them are.
    """
    missing = sorted(expected.keys() - weights.keys())
    if missing and missing != sorted(can_be_new):
        raise InputError(f"{folder}: {_lacks(missing)}")
    more = sorted(weights.keys() - expected.keys())
    if more:
        raise InputError(
            f"{folder}: holds weights that this encoder does not have: {_named(more)}; is it another kind of model?"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise InputError(
                f"{folder}: the shape of {name} is {tuple(weight.shape)}, but {CONFIG_FILE} asks for "
                f"{tuple(expected[name].shape)}"
            )
        if not weight.is_floating_point():
            raise InputError(
                f"{folder}: {name} has the type {str(weight.dtype).removeprefix('torch.')}, expected floating point"
            )


def _lacks(names: Sequence[str]) -> str:
    return (
        f"the checkpoint lacks the weights {_named(names)}; "
        "is it a STAR or ADORE checkpoint, and is the download complete?"
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
