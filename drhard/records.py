"""Read records from files of any format: JSONL, TSV, CSV, Parquet or TREC's, gzipped or not.

A record has fields. The reader is told the usual names of those that are wanted, and gives their values in this order.
It gives some hundred records at a time, since Python takes longer to hand on a record than to parse it.
"""

import csv
import gzip
import html
import itertools
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from drhard.errors import InputError, reason_of, shorten
from drhard.files import BOM, decode_line, require_file

from tqdm import tqdm

BLOCK_BYTES = 1 << 16  # of lines read at a time; larger blocks leave the caches, and take a third longer
BLOCK_RECORDS = 1000
_HEAD = 1 << 12  # bytes that show the format
_OPENING = re.compile(r"<([A-Za-z][\w.-]*)(?:\s[^<>]*)?>")  # of a section
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
_LABEL = re.compile(r"\A\s*(?:Number|Topic|Description|Narrative):")  # of the sections of topics
_BLOCK = re.compile(r"\s*<(DOC|top)>", re.IGNORECASE)
_JSON = re.compile(rb"\s*(?:\{|\[\s*[{\]])")  # objects, or a list of objects, which is refused by its lines
_FOREIGN = {  # first bytes of files that are not read, and what to do
    b"\xff\xfe": "is UTF-16 or UTF-32; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16 or UTF-32; convert it to UTF-8",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"BZh": "is packed by bzip2; unpack it",
    b"\xfd7zXZ": "is packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is packed by zstd; unpack it",
    b"\x1f\x8b": "is gzipped; end its name with .gz",
}
_TAR = 257, b"ustar"  # where a tar archive has this mark


class Field(NamedTuple):
    """A field that is wanted.

    Attributes:
        names: its usual names, the first of them that the file has counts; or the one that a user gave.
        flag: the flag that names it; empty if there is none.
        required: each record must have it.
    """

    names: tuple[str, ...]
    flag: str
    required: bool = True

    @property
    def is_given(self) -> bool:
        """Whether a user gave its name."""
        return len(self.names) == 1


class Records(NamedTuple):
    """Records one after another.

    Attributes:
        numbers: the line or row number of each, from 1.
        columns: for each wanted field, the values of the records; None where a record lacks it.
    """

    numbers: Sequence[int]
    columns: list[Sequence[Any]]


@dataclass(frozen=True)
class RecordFile:
    """A file of records.

    Attributes:
        path: the file.
        fields: the fields that are wanted.
    """

    path: Path
    fields: tuple[Field, ...]

    def read(self, bar: "tqdm[Any] | None" = None) -> Iterator[Records]:
        """Yield the records, some at a time.

        Args:
            bar: a progress bar over the bytes of the file.

        Raises:
            InputError: the file is missing or damaged, its format is not known, or a record lacks a field.
        """
        return _READERS[self.format](self, bar)

    @cached_property
    def format(self) -> str:
        """The format of the file, by its content; ``.csv`` tells CSV from TSV."""
        head = _read_head(self.path)
        if head.startswith(b"PAR1"):
            return "Parquet"
        _refuse_foreign(self.path, head)
        text = head.removeprefix(BOM.encode()).lstrip()
        if _JSON.match(text):
            return "JSONL"
        if text.startswith(b"<"):
            return "TREC"
        return "CSV" if self.path.name.removesuffix(".gz").endswith(".csv") else "TSV"

    def where(self, number: int) -> str:
        """Return what errors call a record."""
        return f"{self.path}, {'row' if self.format == 'Parquet' else 'line'} {number}"


def _read_head(path: Path) -> bytes:
    if require_file(path).is_dir():
        raise InputError(f"{path}: is a folder; a file is expected")
    try:
        with _open(path) as file:
            head: bytes = file.read(_HEAD)
            return head
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error})") from None


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise InputError if a file that starts with ``head`` is packed or is not UTF-8, as its first bytes show."""
    for mark, complaint in _FOREIGN.items():
        if head.startswith(mark):
            raise InputError(f"{path}: {complaint}")
    place, mark = _TAR
    if head.startswith(mark, place):
        raise InputError(f"{path}: is a tar archive; unpack it, and give its files")


def _open(path: Path) -> Any:
    return gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")


def read_line_blocks(path: Path, bar: "tqdm[Any] | None" = None) -> Iterator[tuple[int, list[str]]]:
    """Yield lines of a UTF-8 text file, gzipped or not, some at a time: the number of the first, and lines without end.

    Raises:
        InputError: the file is damaged, or a line is not UTF-8.
    """
    number = 1
    with open(path, "rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        while True:
            try:
                block = file.readlines(BLOCK_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}: damaged after line {number - 1} ({error})") from None
            if not block:
                return
            yield number, _decode(block, path, number)
            number += len(block)
            if bar is not None:
                bar.update(raw.tell() - bar.n)


def _decode(block: list[bytes], path: Path, first: int) -> list[str]:
    """Decode lines at once, which takes a third of the time that one by one takes."""
    try:
        lines = b"".join(block).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return [decode_line(line, path, number) for number, line in enumerate(block, start=first)]  # raises
    if len(lines) > len(block):
        lines.pop()  # what is behind the last line end: nothing
    if first == 1:
        lines[0] = lines[0].removeprefix(BOM)
    return lines


def _read_numbered(path: Path, bar: "tqdm[Any] | None") -> Iterator[tuple[int, str]]:
    """Yield (number, line without its end) of each line. Raises InputError as :func:`read_line_blocks`."""
    for first, lines in read_line_blocks(path, bar):
        yield from enumerate(lines, start=first)


def _gather(records: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[Records]:
    """Yield records, given one by one as (number, values), some at a time."""
    iterator = iter(records)
    while block := list(itertools.islice(iterator, BLOCK_RECORDS)):
        yield Records([number for number, _ in block], list(zip(*(values for _, values in block), strict=True)))


def _find_fields(file: RecordFile, present: Collection[str], where: str) -> list[str | None]:
    """Return the name of each wanted field among those ``present`` in a record.

    Raises:
        InputError: one is missing, or a header names it twice.
    """
    found = []
    for field in file.fields:
        name = _find_field(field, present)
        if name is None and field.required:
            expected = " or ".join(map(repr, field.names))
            there = shorten(", ".join(map(repr, present)))
            way = f"; give {field.flag}" if field.flag else ""
            raise InputError(f"{where}: has no field {expected}{', but ' if there else ''}{there}{way}")
        if name is not None and sum(other == name for other in present) > 1:
            raise InputError(f"{where}: has two fields called {name!r}; rename one")
        found.append(name)
    return found


def _find_field(field: Field, present: Collection[str]) -> str | None:
    return next((name for name in field.names if name in present), None)


def _read_jsonl(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[Records]:
    names: list[str | None] = []
    for first, lines in read_line_blocks(file.path, bar):
        numbers, records = _parse_jsonl(file, first, lines)
        if not records:
            continue
        if not names:
            names = _find_fields(file, records[0], file.where(numbers[0]))
        if None in names:  # the first records had no title, the next may have one
            present = dict.fromkeys(name for record in records for name in record)
            names = [name or _find_field(field, present) for name, field in zip(names, file.fields, strict=True)]
        columns: list[Sequence[Any]] = []
        for name, field in zip(names, file.fields, strict=True):
            values = [record.get(name) for record in records] if name else [None] * len(records)
            if name and field.required and None in values:
                _require_field(file, name, numbers, records)
            columns.append(values)
        yield Records(numbers, columns)


def _parse_jsonl(file: RecordFile, first: int, lines: list[str]) -> tuple[Sequence[int], list[dict[str, Any]]]:
    """Parse lines of JSON. Return their numbers and objects; blank lines are left out.

    json.loads takes half as long again, only to look for blanks around the object.
    """
    try:
        parsed = [_scan(line) for line in lines]
        if all(end == len(line) for (_, end), line in zip(parsed, lines, strict=True)):
            records = [record for record, _ in parsed]
            if set(map(type, records)) == {dict}:
                return range(first, first + len(lines)), records
    except (ValueError, RecursionError):
        pass
    numbers, records = [], []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else reason_of(error)
            raise InputError(f"{file.where(number)}: not JSON ({reason}); expected an object on each line") from None
        if type(record) is not dict:
            raise InputError(f"{file.where(number)}: expected a JSON object on each line")
        numbers.append(number)
        records.append(record)
    return numbers, records


_scan = json.JSONDecoder().raw_decode


def _require_field(file: RecordFile, name: str, numbers: Sequence[int], records: list[dict[str, Any]]) -> None:
    """Raise InputError if a record lacks a field."""
    for number, record in zip(numbers, records, strict=True):
        if name not in record:
            raise InputError(f"{file.where(number)}: the field {name!r} is missing")


def _read_tsv(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[Records]:
    """Read tab-separated fields. The first line may name them; else each line has those that are required."""
    places: list[int | None] = []
    count = 0
    for first, lines in read_line_blocks(file.path, bar):
        lines = [line.rstrip("\r") for line in lines]
        numbers: Sequence[int] = range(first, first + len(lines))
        if "" in lines:
            numbers = [number for number, line in zip(numbers, lines, strict=True) if line]
            lines = list(filter(None, lines))
        rows = [line.split("\t") for line in lines]
        if rows and not count:
            count = len(rows[0])
            places, named = _find_columns(file, rows[0], file.where(numbers[0]))
            if named:
                numbers, rows = numbers[1:], rows[1:]
        if set(map(len, rows)) - {count}:
            place = next(place for place, row in enumerate(rows) if len(row) != count)
            raise InputError(
                f"{file.where(numbers[place])}: has {_fields(rows[place])}, the first line has {count}; replace tabs "
                "and line breaks in texts by blanks"
            )
        columns = list(zip(*rows, strict=True))
        if rows:
            yield Records(numbers, [_column(columns, place, len(rows)) for place in places])


def _fields(values: Sequence[str]) -> str:
    return f"{len(values)} field{'s' * (len(values) != 1)}"


def _column(columns: Sequence[Sequence[Any]], place: int | None, rows: int) -> Sequence[Any]:
    return (None,) * rows if place is None else columns[place]


def _find_columns(file: RecordFile, values: list[str], where: str) -> tuple[list[int | None], bool]:
    """Return the column of each wanted field, and whether the first line of a TSV file, ``values``, names them."""
    required = [field for field in file.fields if field.required]
    lower = {value.lower() for value in values}
    if any(field.is_given or not lower.isdisjoint(field.names) for field in required):  # raises if one is not named
        names = _find_fields(file, values, where)
        return [None if name is None else values.index(name) for name in names], True
    if len(values) != len(required):
        usual = " and ".join(field.names[0] for field in required)
        raise InputError(
            f"{where}: has {_fields(values)}; expected {len(required)}, {usual}, or their names in the first line"
        )
    columns = iter(range(len(required)))
    return [next(columns) if field.required else None for field in file.fields], False


def _read_csv(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[Records]:
    """Read CSV, in which a quoted field may have line breaks. The first line names the fields."""
    return _gather(_csv_records(file, bar))


def _csv_records(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[tuple[int, list[Any]]]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader((f"{line}\n" for _, line in _read_numbered(file.path, bar)), strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        names = _find_fields(file, header, file.where(1))
        places = [None if name is None else header.index(name) for name in names]
        last = rows.line_num
        for values in rows:
            number, last = last + 1, rows.line_num  # the first line of a record with line breaks
            if len(values) != len(header):
                if not values:
                    continue
                raise InputError(f"{file.where(number)}: has {_fields(values)}, the first line has {len(header)}")
            yield number, [None if place is None else values[place] for place in places]
    except csv.Error as error:
        raise InputError(f"{file.where(rows.line_num)}: not CSV ({reason_of(error)})") from None


def _read_parquet(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[Records]:
    if file.path.name.endswith(".gz"):
        raise InputError(f"{file.path}: is a gzipped Parquet file; unpack it")
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{file.path}: reading Parquet needs pyarrow; install it: pip install pyarrow") from None
    size, first = file.path.stat().st_size, 1
    try:
        with parquet.ParquetFile(file.path, page_checksum_verification=True) as table:
            names = _find_fields(file, table.schema_arrow.names, str(file.path))
            columns = list(dict.fromkeys(name for name in names if name is not None))
            for batch in table.iter_batches(BLOCK_RECORDS, columns=columns):
                values: dict[str | None, Sequence[Any]] = {name: batch.column(name).to_pylist() for name in columns}
                values[None] = (None,) * batch.num_rows
                yield Records(range(first, first + batch.num_rows), [values[name] for name in names])
                first += batch.num_rows
                if bar is not None:
                    bar.update(size * (first - 1) // table.metadata.num_rows - bar.n)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{file.path}: damaged after row {first - 1} ({reason_of(error)})") from None


def _read_trec(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[Records]:
    """Read TREC's documents, ``<DOC>``, or topics, ``<top>``. Names of fields are those of tags, in any case."""
    return _gather(_trec_records(file, bar))


def _trec_records(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[tuple[int, list[Any]]]:
    fields = tuple(field._replace(names=tuple(name.lower() for name in field.names)) for field in file.fields)
    lower = RecordFile(file.path, fields)
    for number, block in _trec_blocks(file, bar):
        record: dict[str, Any] = {}
        for name, text in _sections(block):
            record[name] = f"{record[name]} {text}" if name in record else text
        names = _find_fields(lower, record, file.where(number))
        yield number, [None if name is None else record[name] for name in names]


def _trec_blocks(file: RecordFile, bar: "tqdm[Any] | None") -> Iterator[tuple[int, str]]:
    """Yield the line number and the content of each ``<DOC>`` or ``<top>``."""
    lines: list[str] = []
    start, tag = 0, ""
    for number, line in _read_numbered(file.path, bar):
        opening = _BLOCK.match(line)
        if opening and start:
            break
        if opening:
            start, tag, line = number, opening[1].lower(), line[opening.end() :]
        if start:
            place = line.lower().find(f"</{tag}>") if "<" in line else -1
            lines.append(line if place < 0 else line[:place])
            if place >= 0:
                yield start, "\n".join(lines)
                lines, start = [], 0
    if start:
        raise InputError(f"{file.where(start)}: <{tag}> does not end")
    if not tag:
        raise InputError(f"{file.path}: starts with '<', but has neither <DOC> nor <top>; expected TREC's format")


def _sections(block: str) -> Iterator[tuple[str, str]]:
    """Yield the name, in lower case, and the text of each section. One without an end reaches to the next."""
    place = 0
    while opening := _OPENING.search(block, place):
        closing = re.compile(rf"</{re.escape(opening[1])}\s*>", re.IGNORECASE).search(block, opening.end())
        end = closing or _OPENING.search(block, opening.end())
        text = block[opening.end() : end.start() if end else len(block)]
        place = closing.end() if closing else opening.end() + len(text)
        yield opening[1].lower(), _LABEL.sub("", html.unescape(_MARKUP.sub(" ", text))).strip()


_READERS: dict[str, Callable[[RecordFile, "tqdm[Any] | None"], Iterator[Records]]] = {
    "JSONL": _read_jsonl,
    "TSV": _read_tsv,
    "CSV": _read_csv,
    "Parquet": _read_parquet,
    "TREC": _read_trec,
}
