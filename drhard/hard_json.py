"""Read and write ``hard.json``, the file of hard negatives; open the pool of negatives of a training.

MS MARCO's file has 800 MB on one line, so it is read in parts of whole entries.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from drhard.errors import InputError, reason_of
from drhard.files import BOM, require_file, write_whole_text
from drhard.msmarco import LARGEST_ID, parse_number
from drhard.negatives import HardNegatives
from drhard.strategies import AnyDocument, Pool, Strategy

import numpy as np

HARD_FILE = "hard.json"
EXPECTED = 'expected {"query row": [document row, …], …}'
READ_BYTES = 1 << 24
BLANKS = b" \t\r\n"  # JSON's
TO_BLANKS = bytes.maketrans(b'":[],\t\r\n', b" " * 8)  # leaves only the numbers
ENTRY = re.compile(rb'\s*"(\d{1,10})"\s*:\s*\[\s*(?:-?\d{1,19}(?:\s*,\s*-?\d{1,19})*\s*)?\]\s*(?:,|$)')


def write_hard_negatives(path: Path, hard: Mapping[int, np.ndarray]) -> None:
    """Write ``hard.json``: ``{"query row": [document row, …]}`` on one line."""
    with write_whole_text(path) as file:
        file.write("{")
        for number, (query, rows) in enumerate(hard.items()):  # one by one: MS MARCO's file has 800 MB
            file.write(f'{", " if number else ""}"{query}": {rows.tolist()}')
        file.write("}")


def read_hard_negatives(
    path: str | Path, relevant: Iterable[int], documents: int, read_bytes: int = READ_BYTES
) -> HardNegatives:
    """Read ``hard.json``: ``{"query row": [document row, …]}``.

    Args:
        relevant: query rows. Each must be in the file. Its list may be empty: BM25 finds nothing for a query that
            shares no word with any document.
        documents: the number of documents.
        read_bytes: bytes read at a time.

    Raises:
        InputError: the file is not such JSON, lacks a query or names it twice, or names a document beyond the last.
    """
    path = require_file(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; {EXPECTED}")
    none = np.empty(0, dtype=np.int64)
    queries, counts, rows = [none], [none], [none.astype(np.int32)]
    for entries in _entries(path, read_bytes):
        parsed = _parse(entries)
        if parsed is None or (len(parsed.rows) and parsed.rows.max() >= documents):
            _complain(path, entries, documents)
        queries.append(parsed.queries)
        counts.append(parsed.counts)
        rows.append(parsed.rows.astype(np.int32))
    ends = np.cumsum(np.concatenate(counts))
    rows_of_all = np.concatenate(rows)
    del rows
    keys = np.concatenate(queries)
    ascending = np.sort(keys)
    twice = ascending[1:][np.diff(ascending) == 0]
    if len(twice):
        raise InputError(f"{path}: names query {twice[0]} twice")
    hard = HardNegatives(keys, ends, rows_of_all)
    wanted = np.fromiter(relevant, dtype=np.int64)
    lacking = wanted[~np.isin(wanted, keys)]
    if len(lacking):
        raise InputError(
            f"{path}: no hard negative for query {lacking[0]}; was it mined with --mode train on this data?"
        )
    if np.isin(wanted, hard.find_empty()).all():
        raise InputError(f"{path}: no query has a hard negative")
    return hard


def _entries(path: Path, read_bytes: int) -> Iterator[bytes]:
    """Yield the entries of the object in ``path``, without its braces. Each part has the entries that are complete.

    Between two parts, a comma is removed. Raises InputError if a brace or a comma is missing.
    """
    with open(path, "rb") as file:
        text = file.read(read_bytes).removeprefix(BOM.encode()).lstrip(BLANKS)
        if not text.startswith(b"{"):
            raise InputError(f"{path}: {EXPECTED}" if text else f"{path}: not a JSON file (it is empty)")
        text = text[1:]
        comma = False  # whether a comma must come before the next entry
        while more := file.read(read_bytes):
            end = text.rfind(b"]") + 1
            if end:
                yield _without_comma(path, text[:end], comma)
                comma = True
            text = text[end:] + more
    text = text.rstrip(BLANKS)
    if not text.endswith(b"}"):
        raise InputError(f"{path}: not a JSON file (it is cut off: the closing brace is missing)")
    text = text[:-1]
    if text.strip(BLANKS):
        yield _without_comma(path, text, comma)


def _without_comma(path: Path, entries: bytes, comma: bool) -> bytes:
    if not comma:
        return entries
    entries = entries.lstrip(BLANKS)
    if not entries.startswith(b","):
        raise InputError(f"{path}: not a JSON file (a comma is missing before {_shown(entries)})")
    return entries[1:]


class _Parsed(NamedTuple):
    queries: np.ndarray  # (Q,) int64
    counts: np.ndarray  # (Q,) int64
    rows: np.ndarray  # (total,) int64


def _parse(entries: bytes) -> _Parsed | None:
    """Parse ``"query row": [document row, …], …`` as strict JSON. Return None for anything else.

    json.loads makes a Python number of each row, which takes a third more time and five times the memory.
    """
    packed = entries.translate(None, BLANKS)
    pieces = packed[1:-1].split(b'],"')  # query":[row,…
    if packed.translate(None, b"0123456789,") != b'"":[]' * len(pieces) or packed[:1] + packed[-1:] != b'"]':
        return None
    if b",," in packed or b"[," in packed or b",]" in packed:
        return None
    if packed.count(b'":[') != len(pieces) or not all(key.isdigit() for key in entries.split(b'"')[1::2]):
        return None
    commas = np.array([piece.count(b",") for piece in pieces])
    counts = np.where([piece.endswith(b"[") for piece in pieces], 0, commas + 1)
    numbers = np.fromstring(entries.translate(TO_BLANKS), dtype=np.int64, sep=" ")
    if len(numbers) != len(pieces) + counts.sum() or numbers.max() > LARGEST_ID:  # a blank in a number; too many digits
        return None
    # NumPy reads 07 as 7, but JSON allows no zero in front. Without it, a number has one digit, and another for each of
    # 10, 100, … that it reaches. If the text has more digits than its numbers need, one of them has a zero in front.
    digits = len(packed) - 5 * len(pieces) - commas.sum() - (len(pieces) - 1)
    if digits != len(numbers) + sum(int((numbers >= 10**power).sum()) for power in range(1, 10)):
        return None
    keys = np.cumsum(counts + 1) - counts - 1  # places of the query rows among the numbers
    return _Parsed(numbers[keys], counts, np.delete(numbers, keys))


def _complain(path: Path, entries: bytes, documents: int) -> NoReturn:
    """Raise an InputError that says what is wrong with ``entries``, and with which query."""
    try:
        pairs = json.loads(b"{" + entries + b"}", object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else reason_of(error)
        query, end = None, 0
        while entry := ENTRY.match(entries, end):
            query, end = entry[1].decode(), entry.end()
        place = f" after query {query}" if query else ""
        raise InputError(f"{path}: not a JSON file{place} ({reason}; next is {_shown(entries[end:])})") from None
    for query, rows in pairs:
        if parse_number(query) is None or str(int(query)) != query:
            raise InputError(f"{path}: {query[:40]!r} is not a query row; {EXPECTED}")
        if not isinstance(rows, list) or not all(type(row) is int for row in rows):
            raise InputError(f"{path}: query {query} has {_shown(json.dumps(rows).encode())}; {EXPECTED}")
        for row in rows:
            if not 0 <= row < documents:
                raise InputError(
                    f"{path}: query {query} names document {_shown(b'%d' % row)}, but there are only {documents}"
                )
    raise InputError(f"{path}: {EXPECTED}; found {_shown(entries)}")


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def open_pool(
    strategy: Strategy, path: Path | None, relevant: Iterable[int], documents: int, left_out: Sequence[int] = ()
) -> Pool | None:
    """Return the negatives of a static training: given hard negatives, or all documents. None if they must be mined.

    Args:
        path: ``hard.json``, if it is given.
        relevant: query rows.
        documents: the number of documents.
        left_out: the rows of empty texts, which are not drawn.

    Raises:
        InputError: as :func:`read_hard_negatives`.
    """
    if path is not None:
        return read_hard_negatives(path, relevant, documents)
    return None if strategy.mined else AnyDocument(documents, left_out)
