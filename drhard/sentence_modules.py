"""The folder format of sentence-transformers: ``modules.json``, a folder for each module, and prompts.

Of its modules we use Transformer, Pooling (cls or mean), Dense, LayerNorm and Normalize. No code of a folder is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drhard.errors import InputError, shorten
from drhard.files import read_object, write_json
from drhard.numbers import DIM
from drhard.pretrained import check_names_and_shapes, read_all_weights
from drhard.sentence_files import (
    LENGTH_FILE,
    MODULES_FILE,
    NAMES,
    PROMPTS_FILE,
    read_length,
    read_module_list,
    read_prompts,
)

import torch
from safetensors.torch import save_file
from torch import nn

MODE_FIELDS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
OTHER_MODE_FIELDS = tuple(
    f"pooling_mode_{mode}" for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
)
POOLING_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "embedding_dimension": int,
    "word_embedding_dimension": int,  # its name before release 6
    "pooling_mode": (str, list),
    **dict.fromkeys((*MODE_FIELDS.values(), *OTHER_MODE_FIELDS), bool),
    "include_prompt": bool,
}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.GELU": nn.GELU,
}
PACKAGE = "sentence_transformers.models"  # its name in all releases
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")


class Dense(nn.Module):
    """A linear layer with an activation."""

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None):
        super().__init__()
        self.linear = linear
        self.activation_function = activation or nn.Identity()

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map (B, n) to (B, m)."""
        result: torch.Tensor = self.activation_function(self.linear(embeddings))
        return result


class Normalize(nn.Module):
    """Gives each embedding the length 1."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map (B, n) to (B, n)."""
        return nn.functional.normalize(embeddings, dim=-1)


def describe_head(head: nn.Module) -> str:
    """Return what a head computes beside its weights."""
    activation = type(head.activation_function).__name__ if isinstance(head, Dense) else ""
    return f"{type(head).__name__} {activation}".strip()


@dataclass(frozen=True)
class SentenceModules:
    """What the files of a folder say.

    Attributes:
        folder: the folder of the encoder.
        pooling: "cls" or "mean".
        heads: the modules after it, with their weights.
        max_seq_length: the length at which texts are cut; None: the longest that the encoder takes.
        lower_case: texts are lower-cased before they are tokenized.
        prompts: "query" and "passage" -> the text that stands in front of each. A side may be unknown.
        model_args: arguments for building the encoder. Built without its pooler, transformers does not warn that the
            pooler's weights are missing, as they are in our checkpoints.
    """

    folder: Path
    pooling: str
    heads: Sequence[nn.Module] = ()
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    model_args: Mapping[str, object] = field(default_factory=dict)

    @property
    def normalized(self) -> bool:
        """Whether embeddings have the length 1."""
        return bool(self.heads) and isinstance(self.heads[-1], Normalize)


# Read


def read_modules(folder: Path) -> SentenceModules:
    """Read the files of a sentence-transformers folder.

    Raises:
        InputError: a file is missing or damaged, or a module is not among those that can be used.
    """
    places = read_module_list(folder)
    kinds = [kind for kind, _ in places]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(KINDS[2:]):
        raise InputError(
            f"{folder / MODULES_FILE}: the modules are {', '.join(kinds)}; only Transformer and Pooling can be used, "
            "followed by Dense, LayerNorm and Normalize"
        )
    (_, transformer), (_, pooling), *others = places
    mode, size, includes_prompt = _read_pooling(pooling / "config.json")
    heads: list[nn.Module] = []
    for kind, place in others:
        heads.append(_READERS[kind](place, size))
        size = heads[-1].linear.out_features if isinstance(heads[-1], Dense) else size
    prompts = read_prompts(folder)
    if any(prompts.values()) and not includes_prompt:
        raise InputError(f"{pooling / 'config.json'}: the pooling leaves the prompt out; this cannot be used")
    return SentenceModules(transformer, mode, heads, *read_length(transformer), prompts)


def _read_pooling(path: Path) -> tuple[str, int, bool]:
    """Return the pooling, the size of what it pools, and whether it pools the prompt too."""
    content = read_object(path, {}, optional=POOLING_FIELDS)
    unknown = sorted(content.keys() - POOLING_FIELDS)
    if unknown:
        raise InputError(f"{path}: {shorten(unknown[0])} is not known, and may change the pooling")
    size = content.get("embedding_dimension", content.get("word_embedding_dimension"))
    if size is None:
        raise InputError(f"{path}: the field 'word_embedding_dimension' is missing")
    DIM.check(f"{path}: the dimensions", size)
    told = content.get("pooling_mode")
    modes = [told] if isinstance(told, str) else told if isinstance(told, list) else None
    if modes is None:
        modes = [name for name, on in content.items() if name.startswith("pooling_mode_") and on is True]
        modes = [{field: mode for mode, field in MODE_FIELDS.items()}.get(name, name) for name in modes]
    if len(modes) != 1 or modes[0] not in tuple(MODE_FIELDS):
        raise InputError(f"{path}: the pooling is {' and '.join(map(str, modes))[:80]}; only cls or mean can be used")
    return modes[0], size, content.get("include_prompt") is not False


def _read_dense(folder: Path, size: int) -> nn.Module:
    path = folder / "config.json"
    optional = {"bias": bool, "activation_function": str}
    content = read_object(path, {"in_features": int, "out_features": int}, optional=optional)
    activation = content.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS or content.get("use_residual") or _elsewhere(content):
        raise InputError(
            f"{path}: only a dense layer of the sentence embedding can be used, without a residual connection, and "
            f"with {', '.join(name.rpartition('.')[2] for name in ACTIVATIONS)}"
        )
    DIM.check(f"{path}: out_features", content["out_features"])
    if content["in_features"] != size:
        raise InputError(f"{path}: in_features is {content['in_features']}, but the module before gives {size}")
    with torch.device("meta"):  # no memory, until the weights turn out to have these sizes
        head = Dense(nn.Linear(size, content["out_features"], content.get("bias", True)), ACTIVATIONS[activation]())
    _load(head, folder)
    return head


def _elsewhere(content: Mapping[str, Any]) -> bool:
    names = [content.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")]
    return names != ["sentence_embedding"] * 2


def _read_layer_norm(folder: Path, size: int) -> nn.Module:
    path = folder / "config.json"
    found = read_object(path, {"dimension": int})["dimension"]
    if found != size:
        raise InputError(f"{path}: dimension is {found}, but the module before gives {size}")
    head = nn.LayerNorm(size)
    _load(head, folder, "norm.")
    return head


def _read_normalize(folder: Path, size: int) -> nn.Module:
    path = folder / "config.json"
    if path.exists() and _elsewhere(read_object(path, {})):
        raise InputError(f"{path}: only the sentence embedding can be normalized")
    return Normalize()


_READERS = {"Dense": _read_dense, "LayerNorm": _read_layer_norm, "Normalize": _read_normalize}


def _load(head: nn.Module, folder: Path, prefix: str = "") -> None:
    """Load the weights of a head. Raises InputError if they do not fit."""
    weights = {name.removeprefix(prefix): weight for name, weight in read_all_weights(folder).items()}
    check_names_and_shapes(folder, weights, head.state_dict(), ())
    # Copied, not mapped: the file may be rewritten while the model is in use.
    head.load_state_dict({name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}, assign=True)


# Write


def write_modules(folder: Path, size: int, modules: SentenceModules) -> None:
    """Write the files of ``modules`` into ``folder``, beside the weights of the encoder.

    Args:
        size: the dimensions of a hidden state.
    """
    paths = ["", *write_parts(folder, "", size, modules)]
    types = [f"{PACKAGE}.{kind}" for kind in ("Transformer", *(path.rpartition("_")[2] for path in paths[1:]))]
    places = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    write_json(folder / MODULES_FILE, places, indent=2)
    write_length(folder, modules)
    write_prompts(folder, modules)


def write_parts(folder: Path, prefix: str, size: int, modules: SentenceModules) -> list[str]:
    """Write a folder for the pooling and for each head. Return their names: ``{prefix}1_Pooling``, ….

    Args:
        size: the dimensions of a hidden state.
    """
    kinds = ["Pooling", *(type(head).__name__ for head in modules.heads)]
    names = [f"{prefix}{number}_{kind}" for number, kind in enumerate(kinds, start=1)]
    flags = {field: name == modules.pooling for name, field in MODE_FIELDS.items()}
    others = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    write_json(folder / names[0] / "config.json", {"word_embedding_dimension": size} | flags | others, indent=2)
    for head, name in zip(modules.heads, names[1:], strict=True):
        _write_head(head, folder / name)
    return names


def write_length(folder: Path, modules: SentenceModules) -> None:
    """Write what sentence-transformers asks for beside the config of an encoder."""
    told = {"max_seq_length": modules.max_seq_length, "do_lower_case": modules.lower_case}
    arguments = {"model_args": modules.model_args} if modules.model_args else {}
    write_json(folder / LENGTH_FILE, told | arguments, indent=2)


def write_prompts(folder: Path, modules: SentenceModules) -> None:
    """Write the prompts and the similarity: cosine for embeddings of length 1, else the inner product."""
    named = {NAMES[side][0]: prompt for side, prompt in modules.prompts.items()}
    similarity = "cosine" if modules.normalized else "dot"
    told = {"prompts": named, "default_prompt_name": None, "similarity_fn_name": similarity}
    write_json(folder / PROMPTS_FILE, told, indent=2)


def write_router(folder: Path, routes: Mapping[str, Sequence[str]], modules: SentenceModules) -> None:
    """Write the files of a Router: ``encode_query`` and ``encode_document`` take their own modules.

    Args:
        routes: "query" and "document" -> the folders of their modules, in order: ``query_0_Transformer``, ….
        modules: for the prompts and the similarity.
    """
    kind = {name: f"{PACKAGE}.{name.rpartition('_')[2]}" for names in routes.values() for name in names}
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / "router_config.json", {"types": kind, "structure": routes, "parameters": parameters}, indent=2)
    place = {"idx": 0, "name": "0", "path": "", "type": f"{PACKAGE}.Router"}
    write_json(folder / MODULES_FILE, [place], indent=2)
    write_prompts(folder, modules)


def _write_head(head: nn.Module, folder: Path) -> None:
    folder.mkdir()
    if isinstance(head, Dense):
        name = next(name for name, kind in ACTIVATIONS.items() if type(head.activation_function) is kind)
        sizes = {"in_features": head.linear.in_features, "out_features": head.linear.out_features}
        content = sizes | {"bias": head.linear.bias is not None, "activation_function": name}
    elif isinstance(head, nn.LayerNorm):
        content = {"dimension": head.normalized_shape[0]}
    else:
        content = {}
    write_json(folder / "config.json", content, indent=2)
    prefix = "norm." if isinstance(head, nn.LayerNorm) else ""
    weights = {f"{prefix}{name}": weight.cpu().contiguous() for name, weight in head.state_dict().items()}
    if weights:
        save_file(weights, folder / "model.safetensors")
