"""The state of an ADORE training: everything that resuming needs, in ``training_state.pt``, with a digest of it all."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import write_whole_file

import torch

STATE_FILE = "training_state.pt"
WAY_OUT = "name another --model_save_dir, or remove the folder to start over"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: tensors and other values in nested dicts and lists."""
    with write_whole_file(path) as file:
        torch.save({**state, "digest": _digest(state)}, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote. Raises InputError if it is damaged, or if an earlier version wrote it."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        digest = state.pop("digest", None)
        reason = None if digest in (None, _digest(state)) else "its content was changed"
    except Exception as error:  # the type depends on the damage
        reason = type(error).__name__
    if reason:
        raise InputError(f"{path}: damaged ({reason}); {WAY_OUT}")
    if digest is None:
        raise InputError(f"{path}: an earlier version wrote it, and this one cannot resume from it; {WAY_OUT}")
    return state


def _digest(state: Any) -> str:
    """Return the SHA-256 of the tensors and other values in nested dicts and lists, as torch.save stores them."""
    digest = hashlib.sha256()
    for part in _parts(state):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[Any]:
    """Yield the bytes of a nested value, piece by piece, with marks of its structure."""
    if isinstance(value, torch.Tensor):
        yield f"{tuple(value.shape)}{value.dtype}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        yield f"dict {len(value)}".encode()
        for key, inner in value.items():
            yield f"{key!r}:".encode()
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for inner in value:
            yield from _parts(inner)
    else:
        yield f"{value!r};".encode()
