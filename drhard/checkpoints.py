"""The checkpoints of a STAR training: sealed when they are written, checked before a training goes on from one.

``checkpoint-STEP`` holds weights and all that resuming needs, and ``checkpoint.json``, its seal: the step, a digest of
what the training was begun with, and the SHA-256 of each file. The final model, in the folder of the training itself,
has a seal too. ``training.json`` there says what the training was begun with.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import read_object, remove_folder, remove_unfinished, write_json
from drhard.provenance import SEAL_FILE, check_record, find_fault, read_sealed_step

log = logging.getLogger(__name__)

RECORD_FILE = "training.json"
STATE_FILE = "trainer_state.json"
MODEL_FILES = ("config.json", "model.safetensors")
NEEDED = (*MODEL_FILES, "optimizer.pt", "scheduler.pt", STATE_FILE)  # and one of random numbers for each process
MINING_FOLDER = "mining"  # embeddings of a training that mines its own hard negatives
WAY_OUT = "give --overwrite_output_dir to start anew, or name another --output_dir"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` goes."""
    return output_dir / f"checkpoint-{step}"


def open_training(
    output_dir: Path, record: Mapping[str, Any], overwrite: bool, asked: Path | None = None
) -> Path | None:
    """Make ``output_dir`` ready for a training, or find where it was stopped. Its sole writer calls it.

    Args:
        record: what decides the outcome.
        overwrite: remove what an earlier training left.
        asked: the checkpoint to go on from, if not the newest that is whole.

    Returns:
        ``output_dir`` itself if it holds the finished model of this very training, else the checkpoint to go on from,
        None if there is none yet.

    Raises:
        InputError: a training with other settings was begun there, or no checkpoint is whole.
    """
    if overwrite:
        _remove_training(output_dir)
    remove_unfinished(output_dir, "checkpoint-*")
    finished = (output_dir / "config.json").exists()
    checkpoints = _checkpoints(output_dir)
    if finished or checkpoints:
        if not (output_dir / RECORD_FILE).exists():
            there = "is a finished model already" if finished else "are checkpoints of another training"
            raise InputError(f"{output_dir}: there {there}; {WAY_OUT}")
        check_record(output_dir, read_object(output_dir / RECORD_FILE, {}, WAY_OUT), record, WAY_OUT)
    if finished and (output_dir / SEAL_FILE).exists():
        reason = find_fault(output_dir, record, MODEL_FILES)
        if reason:
            raise InputError(f"{output_dir}: there is a finished model, but {reason}; {WAY_OUT}")
        return output_dir
    write_json(output_dir / RECORD_FILE, record, indent=1)
    if asked:
        reason = find_fault(asked, record, NEEDED)
        if reason:
            raise InputError(f"{asked}: no checkpoint to go on from: {reason}")
        return asked
    return _newest_whole(checkpoints, record) if checkpoints else None


def keep_newest(output_dir: Path, step: int, limit: int | None) -> None:
    """Remove checkpoints until ``limit`` are left, that of ``step``, which is whole, among them; None or 0: no limit.

    Those of later steps go first: they were there when the training was resumed from an earlier one.
    """
    others = [path for path in _checkpoints(output_dir) if _step(path) != step]
    others.sort(key=lambda path: (_step(path) < step, _step(path)))
    for path in others[: len(others) - (limit - 1)] if limit else []:
        remove_folder(path)


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, newest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.is_dir() and _step(path) >= 0]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1


def _newest_whole(checkpoints: list[Path], record: Mapping[str, Any]) -> Path:
    reasons = []
    for folder in checkpoints:
        reason = find_fault(folder, record, NEEDED)
        if reason is None and _step(folder) != read_sealed_step(folder):
            reason = f"it is of step {read_sealed_step(folder)}"
        if reason is None:
            return folder
        log.warning("%s is passed over: %s", folder, reason)
        reasons.append(f"{folder.name}: {reason}")
    raise InputError(f"{checkpoints[0].parent}: no checkpoint there is whole ({'; '.join(reasons)}); {WAY_OUT}")


def _remove_training(output_dir: Path) -> None:
    """What makes a model or a checkpoint goes first."""
    for name in ("config.json", SEAL_FILE, "model.safetensors", RECORD_FILE):
        (output_dir / name).unlink(missing_ok=True)
    for folder in (*_checkpoints(output_dir), output_dir / MINING_FOLDER):
        if folder.is_dir():
            remove_folder(folder)
