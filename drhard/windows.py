"""A file that several processes write together, window by window.

Until it is whole, the file is ``NAME.partial``. ``NAME.partial.windows`` beside it has a byte for each window: 1 once
the window is on the disk. A process that is killed loses the window that it was making. The next run goes on, with any
number of processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from drhard.files import disk_faults, partial_path, sync, write_at

_DONE = 1


@dataclass(frozen=True)
class WindowedFile:
    """A file to write in windows of ``window`` bytes. The last one may be smaller.

    Attributes:
        path: the name of the file once it is whole.
        size: of the file, in bytes.
    """

    path: Path
    size: int
    window: int

    @property
    def marks_path(self) -> Path:
        """The file that says which windows are done."""
        return partial_path(self.path).with_name(f"{partial_path(self.path).name}.windows")

    def find_missing(self) -> list[int]:
        """Return the numbers of the windows that the unfinished file lacks, ascending."""
        written = partial_path(self.path).stat().st_size
        # Without marks, an earlier version wrote the windows one after another, or all are done.
        marks = self.marks_path.read_bytes() if self.marks_path.exists() else None
        return [
            number
            for number in range(-(-self.size // self.window))
            if self._end(number) > written or (marks is not None and marks[number : number + 1] != bytes([_DONE]))
        ]

    def begin(self, file: BinaryIO, missing: list[int]) -> None:
        """Cut the unfinished file and its marks to what is done. Only one process does this.

        Args:
            file: the unfinished file, claimed.
            missing: the windows to write.

        Raises:
            OSError: the disk fails.
        """
        count = -(-self.size // self.window)
        marks = bytearray([_DONE]) * count
        for number in missing:
            marks[number] = 0
        kept = marks.rfind(bytes([_DONE]))
        file.truncate(self._end(kept) if kept >= 0 else 0)
        self.marks_path.write_bytes(marks)

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, Any], None]]:
        """Yield a function that writes a window: its number, and its bytes. Several processes can do so.

        Raises:
            InputError: the disk is full or fails.
        """
        with ExitStack() as stack:
            with disk_faults(self.path):
                data_file = stack.enter_context(open(partial_path(self.path), "r+b", buffering=0))
                marks = stack.enter_context(open(self.marks_path, "r+b", buffering=0))

            def write(number: int, data: Any) -> None:
                with disk_faults(self.path):
                    write_at(data_file.fileno(), memoryview(data).cast("B"), number * self.window)
                    os.fsync(data_file.fileno())  # before the mark: a crash must not leave a mark without its window
                    write_at(marks.fileno(), memoryview(bytes([_DONE])), number)

            yield write

    def finish(self) -> None:
        """Give the whole file its name. Only one process does this. Raises OSError if the disk lost a part of it."""
        unfinished = partial_path(self.path)
        sync(unfinished)
        if unfinished.stat().st_size != self.size:
            raise OSError(errno.EIO, "the disk lost a part of it", str(self.path))
        self.marks_path.unlink()
        os.replace(unfinished, self.path)

    def discard(self) -> None:
        """Remove the unfinished file. Any process may do this."""
        partial_path(self.path).unlink(missing_ok=True)
        self.marks_path.unlink(missing_ok=True)

    def _end(self, number: int) -> int:
        return min((number + 1) * self.window, self.size)
