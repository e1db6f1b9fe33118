"""Find a checkpoint by name: a local folder, or a model on the Hugging Face hub.

This module is light to import, so a mistyped name is reported before torch is loaded.
"""

import re
from functools import cache
from pathlib import Path

from drhard.errors import InputError, reason_of

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is used


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint. A model on the Hugging Face hub is fetched first.

    Raises:
        InputError: there is no such folder, or the model cannot be fetched.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: is a file; give the folder of the checkpoint")
    parent_is_here = "/" in name and path.parent.is_dir()
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or parent_is_here:  # not a name on the hub
        raise InputError(f"{name}: no such folder; download_data.sh --models fetches the published checkpoints")
    return _fetch(name)


@cache  # scripts look for a checkpoint before torch is loaded, and load_encoder does again
def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # its lines about retries would bury our error message
    try:
        for weights in WEIGHTS_FILES:
            wanted = [CONFIG_FILE, *TOKENIZER_FILES, weights, f"{weights}.index.json", weights.replace(".", "-*-of-*.")]
            folder = Path(snapshot_download(name, allow_patterns=wanted))
            if any(folder.glob(f"{weights}*")):
                break
    except Exception as error:  # no network, no such model, an invalid name: many types
        reason = reason_of(error)
        raise InputError(
            f"{name}: is not a local folder, and cannot be fetched from the hub ({reason}); check the name"
        ) from None
    finally:
        hub_logging.set_verbosity(verbosity)
    return folder


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
