"""Pretrained models: folders with ``config.json``, weights and tokenizer files. A model is built after all checks."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drhard.architectures import ARCHITECTURES, Architecture, Fields
from drhard.errors import InputError, reason_of
from drhard.files import read_object
from drhard.hub import CONFIG_FILE, WEIGHTS_FILES, refuse_stand_in

import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

_HINT = "does it belong to this checkpoint, and is it complete?"
_UNUSED = re.compile(
    r"embeddings\.(position_ids|token_type_ids)$"  # counters, not learned
    # heads for other tasks
    r"|(pooler|lm_head|classifier|classification_head|pre_classifier|qa_outputs|cls|head|decoder|vocab_\w+)\b"
)


def read_config(folder: Path, untyped: str | None = None) -> PreTrainedConfig:
    """Read ``config.json``. Keep only the fields that decide the embeddings.

    Args:
        untyped: the type of a model whose config names none.

    Returns:
        The config of transformers' class for its ``model_type``, one of :data:`ARCHITECTURES`.

    Raises:
        InputError: the file is missing or damaged, or it describes another kind of model, or one that cannot be built.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: {CONFIG_FILE} is missing; a checkpoint is {CONFIG_FILE} and weights")
    refuse_stand_in(path)
    model_type = read_object(path, {}, _HINT, {"model_type": str}).get("model_type", untyped)
    if model_type is None:
        raise InputError(f"{path}: the field 'model_type' is missing; {_HINT}")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"{folder}: is a checkpoint of type {model_type[:40]!r} ({CONFIG_FILE}, model_type); "
            f"only {', '.join(ARCHITECTURES)} can be used"
        )
    architecture = ARCHITECTURES[model_type]
    content = read_object(
        path,
        {name: kind for name, (kind, _) in architecture.required.items()},
        _HINT,
        {name: kind for name, (kind, _) in architecture.optional.items()}
        | {name: type(value) for name, value in architecture.otherwise.items()},
    )
    for name, expected in architecture.otherwise.items():
        if content.get(name, expected) != expected:
            raise InputError(f"{path}: {name} is {content[name]!r}; this encoder needs {expected!r}")
    taken = _take(path, content, architecture.required | architecture.optional)
    try:
        with quiet_transformers():
            config: PreTrainedConfig = CONFIG_MAPPING[model_type](**taken)
    except Exception as error:  # transformers' classes check their fields with errors of many types
        raise InputError(f"{path}: cannot be used ({reason_of(error)}); {_HINT}") from None
    _check_config(config, path)
    return config


def _take(path: Path, content: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Return the ``fields`` that ``content`` has. Raises InputError if a number is out of its range."""
    taken = {}
    for name, (kinds, bound) in fields.items():
        value = content.get(name)
        if value is not None:
            if bound is not None:
                bound.check(f"{path}: {name}", value)
            kind = kinds[0] if isinstance(kinds, tuple) else kinds
            taken[name] = kind(value)
    return taken


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a config that :func:`read_config` returned."""
    return ARCHITECTURES[config.model_type]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and tables. This module checks what they warn of."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_config(config: PreTrainedConfig, path: Path) -> None:
    """Raise InputError unless the sizes fit each other."""
    architecture = architecture_of(config)
    hidden, heads, act = map(architecture.name, ("hidden_size", "num_attention_heads", "hidden_act"))
    if getattr(config, hidden) % getattr(config, heads):
        raise InputError(
            f"{path}: {hidden} {getattr(config, hidden)} cannot be divided among {getattr(config, heads)} "
            f"attention heads ({heads})"
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name) is not None and getattr(config, name) >= config.vocab_size:
            raise InputError(
                f"{path}: {name} is {getattr(config, name)}, beyond the vocabulary of {config.vocab_size} (vocab_size)"
            )
    if find_longest_sequence(config) < 2:
        raise InputError(
            f"{path}: max_position_embeddings {config.max_position_embeddings} leaves no room for <s> and </s>"
            + (f" after pad_token_id {config.pad_token_id}" if architecture.positions_after_padding else "")
        )
    if getattr(config, act) not in ACT2FN:
        raise InputError(f"{path}: {act} {getattr(config, act)[:40]!r} is not an activation function of transformers")


def find_longest_sequence(config: PreTrainedConfig) -> int:
    """Return the most tokens that the model takes. RoBERTa and its kin do not use the positions up to the pad id."""
    before = config.pad_token_id + 1 if architecture_of(config).positions_after_padding else 0
    return int(config.max_position_embeddings - before)


# Weights


def read_weights(folder: Path, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Read an encoder's weights from a checkpoint, under the names that transformers' model without a head has.

    Heads for other tasks are dropped.

    Raises:
        InputError: the folder has no weights, or a file of weights is missing, damaged, or holds anything else.
    """
    read = read_all_weights(folder)
    if any(name.startswith("module.") for name in read):
        raise InputError(
            f"{folder}: the names of its weights begin with 'module.', as DataParallel writes them; "
            "save the state_dict of model.module instead"
        )
    weights: dict[str, torch.Tensor] = {}
    for name, weight in read.items():
        plain = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix(f"{architecture.prefix}."))
        plain = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", plain)  # so in the first checkpoints of BERT
        if _UNUSED.match(plain):
            continue
        if plain in weights:
            raise InputError(f"{folder}: holds the weight {plain[:80]} twice, once as {name[:80]}; {_HINT}")
        weights[plain] = weight
    return weights


def read_all_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights of a folder, under their own names. Raises InputError as :func:`read_weights`."""
    weights: dict[str, torch.Tensor] = {}
    for path in find_weights_files(folder):
        refuse_stand_in(path)
        weights |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    return weights


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


# Config and weights together


def check_sizes(folder: Path, config: PreTrainedConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError unless ``config`` gives the sizes that the weights have.

    Otherwise a damaged config could make a model of any size. Weights that are missing are not compared.
    """
    architecture = architecture_of(config)
    layers = {match[1] for match in map(architecture.layer.match, weights) if match}
    told = {
        field: weights[name].shape[dimension]
        for field, (name, dimension) in architecture.told.items()
        if name in weights and weights[name].dim() == 2
    }
    complete = told.keys() >= architecture.told.keys() - {"vocab_size"}
    for field, found in ({architecture.name("num_hidden_layers"): len(layers)} | told).items():
        if found and getattr(config, field) != found:
            raise InputError(
                f"{folder / CONFIG_FILE}: {field} is {getattr(config, field)}, but the weights have {found}"
            )
    if not complete:
        names = dict.fromkeys(name for name, _ in architecture.told.values() if name not in weights)
        raise InputError(f"{folder}: {_lacks([f'{architecture.prefix}.{name}' for name in names])}")


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
        "is it a checkpoint of this kind of encoder, and is the download complete?"
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
