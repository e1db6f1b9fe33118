"""What sentence-transformers' files say about texts: where the tokenizer is, lower-casing, prompts.

This module is light to import, so preprocess.py needs no torch. :mod:`drhard.sentence_modules` reads what follows.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from drhard.errors import InputError
from drhard.files import check_fields, read_json, read_object
from drhard.numbers import LENGTH

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
NO_PROMPTS: Mapping[str, str] = MappingProxyType({"query": "", "passage": ""})
NAMES = {"query": ("query",), "passage": ("document", "passage", "corpus")}  # the first that exists, as encode_document


def read_module_list(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and the folder of each module, in order.

    Raises:
        InputError: the list is missing or damaged, or a module is not sentence-transformers' own.
    """
    path = folder / MODULES_FILE
    modules: Any = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{path}: expected a list of modules")
    places = []
    for module in modules:
        check_fields(str(path), module, {"path": str, "type": str})
        package, _, kind = module["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or not re.fullmatch(r"\w*", module["path"]):
            raise InputError(
                f"{path}: cannot use the module {module['type'][:60]!r} at {module['path'][:60]!r}; only modules of "
                "sentence-transformers in folders of their own can be used"
            )
        places.append((kind, folder / module["path"]))
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
    """
    path = folder / LENGTH_FILE
    if not path.exists():
        return None, False
    content = read_object(path, {}, optional={"max_seq_length": (int, type(None)), "do_lower_case": bool})
    length = content.get("max_seq_length")
    if length is not None:
        LENGTH.check(f"{path}: max_seq_length", length)
    return length, content.get("do_lower_case", False)


def read_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of a model: "query" and "passage" -> text. Empty if it names none.

    sentence-transformers also writes empty prompts for a model that never had one.

    Raises:
        InputError: the file that names them is damaged.
    """
    path = folder / PROMPTS_FILE
    if not path.exists():
        return {}
    content = read_object(path, {}, optional={"prompts": dict, "default_prompt_name": (str, type(None))})
    told = content.get("prompts", {})
    if not all(isinstance(prompt, str | None) for prompt in told.values()):
        raise InputError(f"{path}: expected a text for each prompt")
    default = told.get(content.get("default_prompt_name")) or ""
    prompts = {side: _first(told, names) or default for side, names in NAMES.items()}
    return prompts if any(prompts.values()) else {}


def _first(prompts: Mapping[str, str], names: Iterable[str]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")
