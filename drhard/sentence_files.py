"""What sentence-transformers' files say about texts: where the tokenizer is, lower-casing, prompts.

This module is light to import, so preprocess.py needs no torch. :mod:`drhard.sentence_modules` reads what follows.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from drhard.errors import InputError, shorten
from drhard.files import check_fields, read_json, read_object
from drhard.hub import TOKENIZER_CONFIG_FILE
from drhard.numbers import LENGTH

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
MODEL_TYPE = "SentenceTransformer"
_LENGTH_FILES = (  # names of earlier releases; the first that exists is read
    LENGTH_FILE,
    *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")),
)
_TEXTS_ONLY = {  # what sentence-transformers writes for encoders of texts; other values give other embeddings
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    **dict.fromkeys(("model_args", "model_kwargs"), {"add_pooling_layer": False}),  # embeddings come from no pooler
}
_PROMPTS_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "prompts": dict,
    "default_prompt_name": (str, type(None)),
    "model_type": str,
    "truncate_dim": (int, type(None)),
}
NO_PROMPTS: Mapping[str, str] = MappingProxyType({"query": "", "passage": ""})
NAMES = {"query": ("query",), "passage": ("document", "passage", "corpus")}  # the first that exists, as encode_document


def read_module_list(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and the folder of each module, in order.

    Raises:
        InputError: the list is missing or damaged, a module is not sentence-transformers' own, or two have one name:
            sentence-transformers would use the latter alone.
    """
    path = folder / MODULES_FILE
    modules: Any = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{path}: expected a list of modules")
    places = []
    for module in modules:
        check_fields(str(path), module, {"name": str, "path": str, "type": str})
        package, _, kind = module["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or not re.fullmatch(r"\w*", module["path"]):
            raise InputError(
                f"{path}: cannot use the module {module['type'][:60]!r} at {module['path'][:60]!r}; only modules of "
                "sentence-transformers in folders of their own can be used"
            )
        places.append((kind, folder / module["path"]))
    names = [module["name"] for module in modules]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two modules have the same name")
    return places


def find_transformer(folder: Path) -> Path:
    """Return the folder of the encoder and its tokenizer: a subfolder in some of sentence-transformers' folders."""
    if not (folder / MODULES_FILE).exists():
        return folder
    places = read_module_list(folder)
    return places[0][1] if places else folder


def read_length(folder: Path) -> tuple[int | None, bool]:
    """Return the length at which texts are cut, if one is given, and whether they are lower-cased.

    Args:
        folder: the folder of the encoder.

    Raises:
        InputError: a file is damaged, or asks for more than the last hidden states of texts.
    """
    path = next((folder / name for name in _LENGTH_FILES if (folder / name).exists()), None)
    if path is None:
        return _read_tokenizer_length(folder), False
    content = read_object(path, {}, optional={"max_seq_length": (int, type(None)), "do_lower_case": bool})
    length = content.pop("max_seq_length", None)
    if length is not None:
        LENGTH.check(f"{path}: max_seq_length", length)
    lower_case = content.pop("do_lower_case", False)
    content.pop("unpad_inputs", None)  # decides the speed alone
    for field, value in content.items():
        if value and value != _TEXTS_ONLY.get(field):
            raise InputError(f"{path}: {field} is {shorten(value)}; this cannot be used")
    return length or _read_tokenizer_length(folder), lower_case


def _read_tokenizer_length(folder: Path) -> int | None:
    """Return the length at which the tokenizer cuts texts. sentence-transformers 6 writes it only there."""
    path = folder / TOKENIZER_CONFIG_FILE
    if not path.exists():
        return None
    told = read_object(path, {}, optional={"model_max_length": (float, type(None))}).get("model_max_length")
    if told is None or told > LENGTH.most:  # without a length, transformers writes 1e30
        return None
    LENGTH.check(f"{path}: model_max_length", told)
    return int(told)


def read_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of a model: "query" and "passage" -> text. Empty if it names none.

    sentence-transformers also writes empty prompts for a model that never had one.

    Raises:
        InputError: the file that names them is damaged, or it is of another kind of model.
    """
    path = folder / PROMPTS_FILE
    if not path.exists():
        return {}
    content = read_object(path, {}, optional=_PROMPTS_FIELDS)
    if content.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise InputError(f"{path}: model_type is {shorten(content['model_type'])}, expected {MODEL_TYPE}")
    if content.get("truncate_dim") is not None:
        raise InputError(f"{path}: truncate_dim is {content['truncate_dim']}; truncated embeddings cannot be used")
    told = content.get("prompts", {})
    if not all(isinstance(prompt, str | None) for prompt in told.values()):
        raise InputError(f"{path}: expected a text for each prompt")
    default = told.get(content.get("default_prompt_name")) or ""
    prompts = {side: _first(told, names) or default for side, names in NAMES.items()}
    return prompts if any(prompts.values()) else {}


def _first(prompts: Mapping[str, str], names: Iterable[str]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")
