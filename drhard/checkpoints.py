"""The checkpoints of a STAR training. Each is sealed when it is written, and checked before a training resumes from it.

``checkpoint-STEP`` holds the weights and everything else that resuming needs. Its seal is ``checkpoint.json``: the
step, a digest of the training's settings and input, and the SHA-256 of each file. The final model is in the folder of
the training itself and has a seal too. ``training.json`` in the same folder describes the settings and input.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import read_object, remove_folder, remove_unfinished
from drhard.hard_json import HARD_FILE
from drhard.hub import CONFIG_FILE, SAFETENSORS_FILE
from drhard.provenance import SEAL_FILE, check_record, find_fault, read_sealed_step, stamp_path
from drhard.validation import BEST_FOLDER

log = logging.getLogger(__name__)

RECORD_FILE = "training.json"
STATE_FILE = "trainer_state.json"
MODEL_FILES = (CONFIG_FILE, SAFETENSORS_FILE)
NEEDED = (*MODEL_FILES, "optimizer.pt", "scheduler.pt", STATE_FILE)  # each process also has a file of random numbers
MINING_FOLDER = "mining"  # embeddings of a training that mines its own hard negatives
EVALUATION_FOLDER = "evaluation"  # embeddings of an evaluation, while it lasts
WAY_OUT = "give --overwrite_output_dir to start over, or name another --output_dir"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return the folder for the checkpoint of ``step``."""
    return output_dir / f"checkpoint-{step}"


def open_training(
    output_dir: Path, record: Mapping[str, Any], overwrite: bool, asked: Path | None = None
) -> Path | None:
    """Prepare ``output_dir`` for a training, or find the checkpoint to resume from.

    The caller must be the sole writer of the folder.

    Args:
        record: the settings and input that decide the outcome.
        overwrite: remove an earlier training first.
        asked: the checkpoint to resume from. None: the newest whole one.

    Returns:
        ``output_dir`` itself if it holds the finished model of the same training, else the checkpoint to resume from.
        None if there is no checkpoint yet.

    Raises:
        InputError: the folder holds a training with other settings, or no checkpoint is whole.
    """
    if overwrite:
        _remove_training(output_dir)
    remove_unfinished(output_dir, "checkpoint-*")
    finished = (output_dir / "config.json").exists()
    checkpoints = _checkpoints(output_dir)
    if finished or checkpoints:
        if not (output_dir / RECORD_FILE).exists():
            there = "a finished model already" if finished else "checkpoints of another training"
            raise InputError(f"{output_dir}: has {there}; {WAY_OUT}")
        check_record(output_dir, read_object(output_dir / RECORD_FILE, {}, WAY_OUT), record, WAY_OUT)
    if finished and (output_dir / SEAL_FILE).exists():
        reason = find_fault(output_dir, record, MODEL_FILES)
        if reason:
            raise InputError(f"{output_dir}: has a finished model, but {reason}; {WAY_OUT}")
        return output_dir
    if asked:
        reason = find_fault(asked, record, NEEDED)
        if reason:
            raise InputError(f"{asked}: cannot resume from this checkpoint: {reason}")
        return asked
    if checkpoints:
        return _newest_whole(checkpoints, record)
    remove_best(output_dir)
    return None


def remove_best(output_dir: Path) -> None:
    """Remove the best model of a training that starts over."""
    if (output_dir / BEST_FOLDER).is_dir():
        remove_folder(output_dir / BEST_FOLDER)


def keep_newest(output_dir: Path, step: int, limit: int | None) -> None:
    """Remove checkpoints until ``limit`` are left. Keep that of ``step``, which is whole. None or 0: no limit.

    Checkpoints of later steps go first: they are from before the training resumed at an earlier one.
    """
    others = [path for path in _checkpoints(output_dir) if _step(path) != step]
    others.sort(key=lambda path: (_step(path) < step, _step(path)))
    for path in others[: max(0, len(others) - (limit - 1))] if limit else []:
        remove_folder(path)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders of checkpoints, whole or not, newest first."""
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
        log.warning("%s is skipped: %s", folder, reason)
        reasons.append(f"{folder.name}: {reason}")
    raise InputError(f"{checkpoints[0].parent}: no checkpoint is whole ({'; '.join(reasons)}); {WAY_OUT}")


def _remove_training(output_dir: Path) -> None:
    """Remove a training. The files that mark a folder as a model or a checkpoint go first.

    ``hard.json`` stays, as it may be the file of --hardneg_path. Without its stamp it is mined again.
    """
    for name in ("config.json", SEAL_FILE, "model.safetensors", RECORD_FILE, stamp_path(Path(HARD_FILE)).name):
        (output_dir / name).unlink(missing_ok=True)
    others = (MINING_FOLDER, EVALUATION_FOLDER, BEST_FOLDER)
    for folder in (*_checkpoints(output_dir), *(output_dir / name for name in others)):
        if folder.is_dir():
            remove_folder(folder)
