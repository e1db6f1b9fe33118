"""Official ids that are texts, such as ``MED-10`` or ``msmarco_passage_00_0``: a table on disk, row -> id.

The table of ``NAME`` is two files. ``NAME.ids`` has one id on each line. ``NAME.ids.npy`` has the place of each line,
so that an id is read without those before it. Ten million ids would take a gigabyte as Python objects.

Ids that are numbers lie in the pickles of :mod:`drhard.ids`.
"""

import mmap
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from drhard.arrays import read_array
from drhard.errors import InputError, shorten
from drhard.files import BOM, digest_file, require_file, write_whole_file

import numpy as np

# White space and control characters end a field of a run. A byte-order mark is dropped at the start of a file.
_UNFIT = re.compile(rf"[\s\x00-\x1f\x7f-\x9f{BOM}\ud800-\udfff]")
_AT_ONCE = 1 << 16  # ids


def is_fit(name: str) -> bool:
    """Return whether ``name`` can be an official id. Runs and qrels separate their fields by white space."""
    return name != "" and _UNFIT.search(name) is None


def find_unfit(names: Sequence[str]) -> int | None:
    """Return the place of the first of ``names`` that is not fit; None if all are."""
    if "" not in names and _UNFIT.search("".join(names)) is None:
        return None
    return next(place for place, name in enumerate(names) if not is_fit(name))


def refuse_name(name: str, where: str) -> NoReturn:
    """Raise InputError, naming ``where``: ``name`` cannot be an official id."""
    unfit = _UNFIT.search(name)
    what = f"{shorten(repr(name))} has {unfit[0]!r}" if unfit else "is empty"
    raise InputError(f"{where}: the id {what}; runs separate their fields by white space, so give it another id")


def names_path(base: Path) -> Path:
    """Return the file of the ids of ``base``, a path without an ending: ``NAME.ids``."""
    return base.with_name(f"{base.name}.ids")


def offsets_path(base: Path) -> Path:
    """Return the file of the places of the ids of ``base``: ``NAME.ids.npy``."""
    return base.with_name(f"{base.name}.ids.npy")


class OfficialIds(Protocol):
    """The official id of each row."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of ``rows``, as a run spells them."""

    def find(self, name: str) -> int:
        """Return the row of the id that a run spells ``name``, -1 if there is none."""

    def digest(self) -> str:
        """Return a digest that tells these ids from others."""


class Names:
    """A table of ids that are texts. It is read from the disk.

    Args:
        base: the path of the table, without its ending.
        before: the table that this one continues, while it grows: ``NAME.ids`` has only the ids behind those. Then only
            :meth:`take` and its like may be called.

    Raises:
        InputError: a file is missing or damaged, or the two do not belong together.
    """

    def __init__(self, base: Path, before: "Names | None" = None):
        self.path = require_file(names_path(base), "it belongs to the official ids")
        self.offsets = read_array(offsets_path(base), f"it belongs to {self.path.name}")
        self._before, self._start = before, 0 if before is None else before.bytes
        size = self.path.stat().st_size
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64 or not len(self.offsets):
            raise InputError(f"{offsets_path(base)}: expected a list of int64")
        if self.offsets[0] != 0 or self.offsets[-1] != self._start + size:
            raise InputError(f"{offsets_path(base)}: has the places of other ids than {self.path.name}")
        with open(self.path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    @property
    def bytes(self) -> int:
        """The size of the ids, those of the table before included."""
        return int(self.offsets[-1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        if self._before is not None and row < len(self._before):
            return self._before[row]
        first, end = int(self.offsets[row]) - self._start, int(self.offsets[row + 1]) - self._start
        line = self._bytes[first:end]
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            return line[:-1].decode("utf-8")
        except ValueError:
            raise InputError(f"{self.path}: is damaged at row {row}; make it again") from None

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            rows = range(first, min(first + _AT_ONCE, len(self)))
            yield from self.take(rows) if self._before else self._split(rows)

    def _split(self, rows: range) -> list[str]:
        """Return the ids of ``rows``, which takes a tenth of the time of one by one."""
        text = self._bytes[int(self.offsets[rows.start]) : int(self.offsets[rows.stop])].decode("utf-8", "replace")
        names = text.split("\n")
        if names.pop() or len(names) != len(rows) or "\ufffd" in text:
            return self.take(rows)  # which finds the damage
        return names

    def take(self, rows: Sequence[int]) -> list[str]:
        """See :meth:`OfficialIds.take`. Raises InputError if the file is damaged."""
        return [self[row] for row in rows]

    def find(self, name: str) -> int:
        """See :meth:`OfficialIds.find`. It reads the file; :class:`NameLookup` finds many ids faster."""
        line = f"{name}\n".encode(errors="replace")
        if self._bytes[: len(line)] == line:
            return 0
        place = self._bytes.find(b"\n" + line)
        return -1 if place < 0 else int(np.searchsorted(self.offsets, place + 1))

    def digest(self) -> str:
        """See :meth:`OfficialIds.digest`: the SHA-256 of the file."""
        return digest_file(self.path)


class NameWriter:
    """Writes a table of ids. Use :func:`write_names` to get one."""

    def __init__(self, file: BinaryIO, start: int):
        self._file = file
        self.ends = array("q", [start])

    def add(self, names: Sequence[str]) -> None:
        """Append the ids of the next rows. Check them first: see :func:`find_unfit`."""
        if not names:
            return
        lines = "\n".join(names).encode("utf-8") + b"\n"
        self._file.write(lines)
        ends = np.cumsum([len(line) + 1 for line in lines[:-1].split(b"\n")], dtype=np.int64) + self.ends[-1]
        self.ends.frombytes(ends.tobytes())


@contextmanager
def write_names(base: Path, before: Names | None = None) -> Iterator[NameWriter]:
    """Write the table of ``base``, a path without an ending. Both files get their names when the block ends.

    Args:
        before: the table that this one continues: only the ids behind those are written, and the places of all.
    """
    with write_whole_file(offsets_path(base)) as places:
        with write_whole_file(names_path(base)) as file:
            writer = NameWriter(file, 0 if before is None else before.bytes)
            yield writer
        ends = np.frombuffer(writer.ends, dtype=np.int64)
        np.save(places, ends if before is None else np.concatenate([before.offsets[:-1], ends]))


def copy_names(source: Names, rows: np.ndarray, base: Path, before: Names | None = None) -> None:
    """Write the ids of ``rows`` (n,) of ``source``, in their order, as the table of ``base``, behind ``before``."""
    with write_names(base, before) as writer:
        for first in range(0, len(rows), _AT_ONCE):
            writer.add(source.take(rows[first : first + _AT_ONCE].tolist()))


class NameLookup:
    """Finds the rows of ids that are texts, in 16 bytes for each id.

    Args:
        hashes: (rows,) int64, Python's hash of each id in this process.
    """

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.hashes, kind="stable")

    @classmethod
    def of(cls, names: Iterable[str]) -> "NameLookup":
        """Return a lookup of the ids ``names``, in the order of their rows."""
        return cls(np.frombuffer(array("q", map(hash, names)), dtype=np.int64))

    def candidates(self, name: str) -> list[int]:
        """Return the rows whose id may be ``name``, ascending. Compare them: two ids may have one hash."""
        key = hash(name)
        first = last = int(np.searchsorted(self.hashes, key, sorter=self._order))
        while last < len(self.hashes) and self.hashes[self._order[last]] == key:
            last += 1
        rows: list[int] = self._order[first:last].tolist()
        return rows

    def find(self, name: str, names: Names) -> int:
        """Return the row of ``name`` in the table ``names``, -1 if it is not there."""
        return next((row for row in self.candidates(name) if names[row] == name), -1)

    def find_twice(self, names: Names) -> str | None:
        """Return an id that the table ``names`` has twice; None if all differ."""
        ordered = self.hashes[self._order]
        for key in np.unique(ordered[1:][ordered[1:] == ordered[:-1]]):
            first, last = (np.searchsorted(ordered, key, side) for side in ("left", "right"))
            seen: set[str] = set()
            for name in names.take(self._order[first:last].tolist()):
                if name in seen:
                    return name
                seen.add(name)
        return None
