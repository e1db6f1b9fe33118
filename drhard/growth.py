"""Grow files in place: rows are added behind those that are there, and files that describe them are replaced.

The new content is first written into a folder of its own: the new end of each file that grows, and all of each file
that is replaced. Then ``growth.json`` appears in this folder. From now on the growth is decided: if this process is
killed, the next one finishes it, and does again what was done already. One of the replaced files says how long the
others are. It is replaced last, so that readers refuse files that have grown only in part.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drhard.errors import InputError
from drhard.files import disk_faults, read_object, sync, write_json

GROWTH_FILE = "growth.json"
COPIED_BYTES = 1 << 23  # at a time


def prepared_in(folder: Path) -> Path:
    """Return the folder in which the growth of the files in ``folder`` is prepared."""
    return folder / ".partial"


def is_growing(prepared: Path) -> bool:
    """Return whether ``prepared`` holds a growth that was decided and is not finished."""
    return (prepared / GROWTH_FILE).exists()


@contextmanager
def prepare_growth(prepared: Path) -> Iterator[Path]:
    """Yield ``prepared``, an empty folder inside that of the files to grow. It is gone when the block ends.

    Only a growth that was decided and could not be finished stays, for instance since the disk is full. It is finished
    first when the folder is prepared again. Only the sole writer of the files may call this.
    """
    finish_growth(prepared)
    shutil.rmtree(prepared, ignore_errors=True)  # left by a killed process
    prepared.mkdir()
    try:
        yield prepared
    finally:
        if not is_growing(prepared):
            shutil.rmtree(prepared, ignore_errors=True)


def grow_files(prepared: Path, ends: Mapping[str, int], last: str) -> None:
    """Give the files in ``prepared`` their places in the folder around it. They must have been flushed to the disk.

    Args:
        ends: the files of which ``prepared`` has only the end: name -> the number of bytes in front of it. These bytes
            stay; what the file has behind them is overwritten.
        last: the file that says how long the others are.

    Raises:
        InputError: the disk is full or fails. The next call of :func:`finish_growth` goes on.
    """
    with disk_faults(prepared):
        sync(prepared)
    write_json(prepared / GROWTH_FILE, {"ends": dict(ends), "last": last})
    finish_growth(prepared)


def finish_growth(prepared: Path) -> None:
    """Finish the growth that was decided in ``prepared``, if there is one. Only the sole writer may call this.

    Raises:
        InputError: as :func:`grow_files`; or a file is shorter than it was.
    """
    journal = prepared / GROWTH_FILE
    if not journal.exists():
        return
    plan = read_object(journal, {"ends": dict, "last": str})
    folder, ends, last = prepared.parent, plan["ends"], plan["last"]
    if (prepared / last).exists():  # else all is done but for the removal of the ends
        for name, start in ends.items():
            _write_end(folder / name, prepared / name, start)
        replaced = {path.name for path in prepared.iterdir()} - {*ends, GROWTH_FILE}
        for name in sorted(replaced, key=lambda name: (name == last, name)):
            os.replace(prepared / name, folder / name)
        with disk_faults(folder):
            sync(folder)
    for name in ends:
        (prepared / name).unlink(missing_ok=True)
    journal.unlink()
    prepared.rmdir()


def _write_end(path: Path, end: Path, start: int) -> None:
    """Write the content of ``end`` into ``path``, from byte ``start`` to its new end.

    The file is never made shorter: another process may have mapped it.
    """
    with disk_faults(path), open(path, "r+b") as file, open(end, "rb") as source:
        if os.fstat(file.fileno()).st_size < start:
            raise InputError(f"{path}: is shorter than the {start} bytes that it had; delete {end.parent}")
        file.seek(start)
        shutil.copyfileobj(source, file, COPIED_BYTES)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
