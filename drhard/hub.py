"""The files of a checkpoint, and where they are: in a local folder, or on the Hugging Face hub.

This module is light to import, so a mistyped name is reported before torch is loaded. It needs only Python 3.9 and the
standard library until it fetches a model, as :mod:`drhard.downloads` does.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from drhard.errors import InputError, reason_of

CONFIG_FILE = "config.json"
VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (VOCAB_FILE, MERGES_FILE)  # of the published tokenizer
ALL_TOKENIZER_FILES = (  # of transformers' tokenizers
    *TOKENIZER_FILES,
    "tokenizer.json",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
SENTENCE_FILES = ("modules.json", "*sentence*.json", "[0-9]_*/*")  # patterns of sentence-transformers' own files
SAFETENSORS_FILE = "model.safetensors"
WEIGHTS_FILES = (SAFETENSORS_FILE, "pytorch_model.bin")  # the first that exists is used


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint. A model on the Hugging Face hub is fetched first.

    Raises:
        InputError: there is no such folder, or the model cannot be fetched.
    """
    return _find_folder(name_or_path) or _fetch_checkpoint(str(name_or_path))


def find_tokenizer(name_or_path: str | Path) -> Path:
    """Do as :func:`find_checkpoint`, but fetch only the files of the tokenizer from the hub."""
    return _find_folder(name_or_path) or _fetch(str(name_or_path), (CONFIG_FILE, *ALL_TOKENIZER_FILES, *SENTENCE_FILES))


def _find_folder(name_or_path: str | Path) -> Path | None:
    """Return the local folder; None if there is none and this may be a name on the hub."""
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: is a file; give the folder of the checkpoint")
    parent_is_here = "/" in name and path.parent.is_dir()
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or parent_is_here:  # not a name on the hub
        raise InputError(f"{name}: no such folder; download_data.sh --models fetches the published checkpoints")
    return None


def _fetch_checkpoint(name: str) -> Path:
    for weights in WEIGHTS_FILES:
        parts = (f"{weights}.index.json", weights.replace(".", "-*-of-*."))
        folder = _fetch(name, (CONFIG_FILE, *ALL_TOKENIZER_FILES, *SENTENCE_FILES, weights, *parts))
        if any(folder.glob(f"{weights}*")):
            break
    return folder


@cache  # scripts look for a checkpoint before torch is loaded, and load_encoder does again
def _fetch(name: str, wanted: tuple[str, ...]) -> Path:
    """Fetch those files of a model on the hub that match one of the patterns ``wanted``. Return their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # its lines about retries would bury our error message
    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted)))
    except Exception as error:  # no network, no such model, an invalid name: many types
        reason = reason_of(error)
        raise InputError(
            f"{name}: is not a local folder, and cannot be fetched from the hub ({reason}); check the name"
        ) from None
    finally:
        hub_logging.set_verbosity(verbosity)


_STAND_INS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file; fetch the file with 'git lfs pull'"),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page, not the file; download it again"),
)


def refuse_stand_in(path: Path) -> None:
    """Raise InputError if the file is empty, a web page or a pointer of Git LFS: signs of a failed download."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"{path}: is empty; is the download complete?")
    for pattern, sentence in _STAND_INS:
        if re.match(pattern, start, re.IGNORECASE):
            raise InputError(f"{path}: {sentence}")
