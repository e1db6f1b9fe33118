"""Hard negatives: what a retriever ranks high though it is not judged relevant, and their file ``hard.json``."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

from drhard.errors import InputError
from drhard.files import existing, whole_text
from drhard.msmarco import parse_number

import numpy as np

EXPECTED = 'expected {"qid": [pid, …], …} with row numbers'
READ_BYTES = 1 << 24
RESULTS_AT_ONCE = 1 << 21  # 16 MB as int64
PLAIN = b' \t\r\n0123456789-,:[]"'  # the characters of hard.json, but for the braces around it
ENTRY = re.compile(rb'\s*"(\d{1,10})"\s*:\s*\[\s*(?:-?\d{1,19}(?:\s*,\s*-?\d{1,19})*\s*)?\]\s*(?:,|$)')


class HardNegatives(Mapping[int, np.ndarray]):
    """Query row -> its hard negatives (n,) int32, best first; one flat array for all, 4 bytes a negative.

    Args:
        queries: (Q,) int64 query rows, in the order of the file, none twice.
        ends: (Q,) int64, where the negatives of each end in ``rows``.
        rows: (total,) int32 document rows.
    """

    def __init__(self, queries: np.ndarray, ends: np.ndarray, rows: np.ndarray):
        self._queries, self._ends, self._rows = queries, ends, rows
        self._starts = np.concatenate(([0], ends[:-1]))
        self._order = np.argsort(queries, kind="stable")
        self._sorted = queries[self._order]

    def __getitem__(self, query: int) -> np.ndarray:
        place = int(np.searchsorted(self._sorted, query))
        if place == len(self._sorted) or self._sorted[place] != query:
            raise KeyError(query)
        place = self._order[place]
        return self._rows[self._starts[place] : self._ends[place]]

    def without_any(self) -> np.ndarray:
        """The query rows whose list is empty."""
        return self._queries[self._starts == self._ends]

    def __iter__(self) -> Iterator[int]:
        return iter(self._queries.tolist())

    def __len__(self) -> int:
        return len(self._queries)


def best_not_relevant(rows: np.ndarray, relevant: Mapping[int, Sequence[int]], topk: int) -> HardNegatives:
    """The ``topk`` best documents of each query that are not judged relevant to it (section 4.1 of the paper).

    Args:
        rows: (Q, depth) document rows of query rows 0 to Q - 1, best first; -1, at the end, where there are fewer.
        relevant: query row -> relevant document rows.
    """
    queries, depth = rows.shape
    judged = np.fromiter((query << 32 | row for query, of in relevant.items() for row in of), dtype=np.int64)
    judged.sort()
    negatives = np.empty(queries * topk, dtype=np.int32)
    counts = np.empty(queries, dtype=np.int64)
    end, at_once = 0, max(1, RESULTS_AT_ONCE // depth)
    for first in range(0, queries, at_once):
        some = rows[first : first + at_once].astype(np.int64)
        pairs = (np.arange(first, first + len(some)) << 32)[:, None] | np.maximum(some, 0)
        kept = (some >= 0) & ~_among(pairs, judged)
        kept &= np.cumsum(kept, axis=1, dtype=np.int32) <= topk
        counts[first : first + len(some)] = kept.sum(axis=1)
        found = some[kept]
        negatives[end : end + len(found)] = found
        end += len(found)
    return HardNegatives(np.arange(queries), np.cumsum(counts), negatives[:end])


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of ``values`` are in ``ascending``."""
    ascending = ascending[slice(*np.searchsorted(ascending, (values.min(), values.max() + 1)))]
    if not len(ascending):
        return np.zeros(values.shape, dtype=bool)
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(ascending) - 1)] == values


def write_hard_negatives(path: Path, hard: Mapping[int, np.ndarray]) -> None:
    """Write ``hard.json``: ``{"qid": [pid, …]}`` in rows, on one line."""
    with whole_text(path) as file:
        file.write("{")
        for number, (query, rows) in enumerate(hard.items()):  # one by one: 800 MB of text for MS MARCO
            file.write(f'{", " if number else ""}"{query}": {rows.tolist()}')
        file.write("}")


def read_hard_negatives(path: str | Path, relevant: Iterable[int], documents: int) -> HardNegatives:
    """Read ``hard.json``, ``{"qid": [pid, …]}`` in rows.

    MS MARCO's has 800 MB on one line, so it is read in parts of whole entries.

    Args:
        relevant: query rows; each of them must be in the file. A list may be empty, if BM25 found no document that
            shares a word.
        documents: how many there are.

    Raises:
        InputError: the file is no such file, lacks a query or names it twice, or names a document that is not there.
    """
    path = existing(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; {EXPECTED}")
    none = np.empty(0, dtype=np.int64)
    queries, counts, rows = [none], [none], [none.astype(np.int32)]
    for entries in _entries(path):
        some, lists = _parse(path, entries)
        flat = _flat(path, some, lists, documents)
        queries.append(np.array(some, dtype=np.int64))
        counts.append(np.fromiter(map(len, lists), dtype=np.int64, count=len(lists)))
        rows.append(flat.astype(np.int32))
    ends = np.cumsum(np.concatenate(counts))
    rows_of_all = np.concatenate(rows)
    del rows
    keys = np.concatenate(queries)
    ascending = np.sort(keys)
    twice = ascending[1:][np.diff(ascending) == 0]
    if len(twice):
        raise InputError(f"{path}: query {twice[0]} is there twice")
    hard = HardNegatives(keys, ends, rows_of_all)
    wanted = np.fromiter(relevant, dtype=np.int64)
    lacking = wanted[~np.isin(wanted, keys)]
    if len(lacking):
        raise InputError(
            f"{path}: no hard negative for query {lacking[0]}; was it mined with --mode train on this data?"
        )
    if np.isin(wanted, hard.without_any()).all():
        raise InputError(f"{path}: no query has a hard negative")
    return hard


def _entries(path: Path) -> Iterator[bytes]:
    """Yield the entries of the object in ``path``, as many as end in each part that is read, without braces.

    Joined by commas again, they are the object. Raises InputError if braces or commas are not where they should be.
    """
    with open(path, "rb") as file:
        text = file.read(READ_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not text.startswith(b"{"):
            raise InputError(f"{path}: {EXPECTED}" if text else f"{path}: not a JSON file (it is empty)")
        text = text[1:]
        comma = False  # whether one must come before the next entry
        while more := file.read(READ_BYTES):
            end = text.rfind(b"]") + 1
            if end:
                yield _without_comma(path, text[:end], comma)
                comma = True
            text = text[end:] + more
    text = text.rstrip()
    if not text.endswith(b"}"):
        raise InputError(f"{path}: not a JSON file (it is cut off: the closing brace is missing)")
    text = text[:-1]
    if text.strip():
        yield _without_comma(path, text, comma)


def _without_comma(path: Path, entries: bytes, comma: bool) -> bytes:
    if not comma:
        return entries
    entries = entries.lstrip()
    if not entries.startswith(b","):
        raise InputError(f"{path}: not a JSON file (a comma is missing before {_shown(entries)})")
    return entries[1:]


def _parse(path: Path, entries: bytes) -> tuple[list[int], list[list[int]]]:
    """Query rows and their lists. Raises InputError if ``entries`` are no entries of whole numbers in lists."""
    try:
        pairs = json.loads(b"{" + entries + b"}", object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        _complain(path, entries, error)
    # Without other characters, and with two quotes and one bracket for each entry, all is numbers in lists.
    plain = not entries.translate(None, PLAIN) and entries.count(b'"') == 2 * len(pairs) == 2 * entries.count(b"[")
    if not (plain and pairs):
        _complain(path, entries)
    queries = [parse_number(query) for query, _ in pairs]
    if None in queries:
        wrong = pairs[queries.index(None)][0]
        raise InputError(f"{path}: {wrong[:40]!r} is no query row; {EXPECTED}")
    return queries, [rows for _, rows in pairs]


def _flat(path: Path, queries: Sequence[int], lists: Sequence[list[int]], documents: int) -> np.ndarray:
    """The lists in one int64 array. Raises InputError if a document is not one of ``documents``."""
    try:
        flat = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=sum(map(len, lists)))
        good = not len(flat) or (flat.min() >= 0 and flat.max() < documents)
    except OverflowError:
        good = False
    if not good:
        for query, rows in zip(queries, lists, strict=True):
            for row in rows:
                if not 0 <= row < documents:
                    raise InputError(
                        f"{path}: query {query} names document {str(row)[:40]}, beyond the {documents} there are"
                    )
    return flat


def _complain(path: Path, entries: bytes, error: Exception | None = None) -> NoReturn:
    """Raise the InputError that names the first query whose entry is wrong."""
    end, query = 0, None
    while entry := ENTRY.match(entries, end):
        end, query = entry.end(), entry[1].decode()
    place = f"the first entry that is wrong begins {_shown(entries[end:])}"
    place += f", after query {query}" if query is not None else ""
    if error is None:
        raise InputError(f"{path}: {EXPECTED}; {place}")
    reason = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
    raise InputError(f"{path}: not a JSON file ({reason}); {place}")


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
