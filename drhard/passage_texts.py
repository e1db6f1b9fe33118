"""The text of any passage, read from the file of the collection where an offsets file says that its line begins."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from drhard.arrays import read_array
from drhard.dataset import START, Place, end_of, read_import
from drhard.errors import InputError
from drhard.files import decode_line, write_whole_file
from drhard.msmarco import Corpus, find_source_file
from drhard.provenance import digest_sample, find_difference, read_stamp, stamp_path, write_stamp
from drhard.texts import read_passages

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

OFFSETS_FILE = "passages_offsets.npy"  # in the preprocess folder
COPY_FILE = "passages.tsv"  # beside it: the lines of a gzipped collection, in which no line can be found by its offset
STAMP_FIELDS = {"source": str, "bytes": int, "documents": str}
MAKE_AGAIN = "delete it and run the same command again"


class PassageTexts:
    """The texts of a collection. Only those that are asked for are read.

    Args:
        corpus: the format of the lines.
        path: the file of the lines, not gzipped.
        offsets: (rows,) int64, where the line of each row begins, in bytes.
        pids: (rows,) int64, the official ids.
    """

    def __init__(self, corpus: Corpus, path: Path, offsets: np.ndarray, pids: np.ndarray):
        self._corpus, self._path = corpus, path
        self._offsets, self._pids = offsets, pids

    def read(self, rows: Iterable[int]) -> list[str]:
        """Return the texts of ``rows``. The url, title and body of a document are separated by line feeds.

        Raises:
            InputError: the file has changed since its offsets were found.
        """
        texts = []
        with open(self._path, "rb") as file:
            for row in rows:
                file.seek(int(self._offsets[row]))
                texts.append(self._parse(row, file.readline()))
        return texts

    def _parse(self, row: int, line: bytes) -> str:
        where = f"{self._path}, row {row}"
        try:
            pid, text = self._corpus.parse(decode_line(line, self._path, row + 1), where)
        except InputError:
            pid, text = -1, ""
        if pid != self._pids[row]:
            raise InputError(f"{where}: does not begin where {OFFSETS_FILE} says; delete {OFFSETS_FILE} and run again")
        return text.replace("<sep>", "\n")


def open_passage_texts(corpus: Corpus, dataset: Path, folder: Path, pids: np.ndarray) -> PassageTexts | None:
    """Open the texts of a collection. Find the offsets first if that was not done before; progress is shown.

    Finding them takes one pass over the texts, and 8 bytes of memory for each passage; if passages were appended to an
    imported collection, only these are read. The offsets of a gzipped collection are those of an uncompressed copy,
    which is written beside them.

    Args:
        dataset: the folder of the texts.
        folder: the preprocess folder, in which the offsets are kept.
        pids: (rows,) int64, the official ids of the passages.

    Returns:
        The texts; None if ``dataset`` has none.

    Raises:
        InputError: a line is bad, preprocess.py read other texts, another process is finding the offsets, or the disk
            is full.
    """
    source = find_source_file(dataset, corpus.collection)
    if source is None:
        return None
    path = folder / OFFSETS_FILE
    lines = folder / COPY_FILE if source.suffix == ".gz" else source
    stamp = {
        "source": source.name,
        "bytes": source.stat().st_size,
        "documents": _digest(pids),
    }
    if not (lines.is_file() and path.is_file() and _has_stamp(path, stamp)):
        parts = (read_import(dataset) or {}).get("parts", []) if lines == source else []
        _find_offsets(corpus, source, lines, pids, path, _find_earlier(path, stamp, pids, parts))
        write_stamp(path, stamp)
    return PassageTexts(corpus, lines, _read_offsets(path, len(pids)), pids)


def _has_stamp(path: Path, stamp: dict[str, Any]) -> bool:
    found = read_stamp(path, STAMP_FIELDS)
    return found is not None and find_difference(found, stamp) is None


def _digest(pids: np.ndarray) -> str:
    return f"{len(pids)}-{digest_sample(pids)}"


class _Earlier(NamedTuple):
    """Offsets that were found before passages were appended."""

    offsets: np.ndarray  # (rows,) int64
    place: Place  # the end of these passages


def _find_earlier(
    path: Path, stamp: Mapping[str, Any], pids: np.ndarray, parts: Sequence[Mapping[str, int]]
) -> _Earlier:
    """Return the offsets at ``path`` of the first passages of what ``stamp`` describes; none if it has others.

    Args:
        parts: those of ``import.json``; empty if the collection cannot be appended to.
    """
    found = read_stamp(path, STAMP_FIELDS) if path.is_file() else None
    for count in range(1, len(parts)):
        place = end_of(parts[:count])
        rows = int(np.searchsorted(pids, place.lines))  # the official ids are the numbers of the lines
        if found is None or found["bytes"] != place.bytes or not rows:
            continue
        if find_difference(found, {**stamp, "bytes": place.bytes, "documents": _digest(pids[:rows])}) is None:
            return _Earlier(np.array(_read_offsets(path, rows)), place)
    return _Earlier(np.empty(0, dtype=np.int64), START)


def _find_offsets(corpus: Corpus, source: Path, lines: Path, pids: np.ndarray, path: Path, earlier: _Earlier) -> None:
    """Write the offsets of the lines of ``source`` to ``path``, and its lines to ``lines`` if it is gzipped."""
    first = len(earlier.offsets)
    which = "each new passage" if first else "each passage"
    log.info("%s: finding where %s begins, once; the offsets go to %s", source, which, path)
    offsets = np.empty(len(pids), dtype=np.int64)
    offsets[:first] = earlier.offsets
    with ExitStack() as stack:
        file = stack.enter_context(write_whole_file(path))  # locks out other processes, for the copy as well
        stamp_path(path).unlink(missing_ok=True)  # of older offsets: it does not hold for the new copy
        copy = None
        if lines != source:
            log.info("%s: is gzipped; its lines go to %s", source, lines)
            copy = stack.enter_context(write_whole_file(lines))
        end = 0
        bar = stack.enter_context(
            tqdm(total=len(pids), initial=first, unit="passage", unit_scale=True, desc="reading the texts")
        )
        for row, passage in enumerate(read_passages(source, corpus, pids, first, earlier.place), start=first):
            if copy is None:
                offsets[row] = passage.offset
            else:
                offsets[row] = end
                end += copy.write(passage.line)
            bar.update()
        np.save(file, offsets)


def _read_offsets(path: Path, rows: int) -> np.ndarray:
    offsets = read_array(path, MAKE_AGAIN)
    if offsets.shape != (rows,) or offsets.dtype != np.int64:
        raise InputError(f"{path}: is not {rows} int64 offsets; {MAKE_AGAIN}")
    return offsets
