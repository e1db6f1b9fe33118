"""What import_collection.py can import: a BEIR folder, a data set of ir_datasets, or files of one's own.

A source has the texts of passages, and splits. A split has the texts of queries and, mostly, judgements.
"""

import argparse
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from drhard.dataset import parse_split
from drhard.errors import InputError, reason_of
from drhard.files import digest_file
from drhard.msmarco import find_source_file
from drhard.qrels import (
    DOCUMENT_COLUMNS,
    GRADE_COLUMNS,
    QUERY_COLUMNS,
    NamedJudgement,
    merge_judgements,
    parse_grade,
    read_named_judgements,
)
from drhard.records import BLOCK_RECORDS, Field, RecordFile

from tqdm import tqdm

IR_DATASETS = "ir_datasets:"
IDS = ("_id", "id", "pid", "docid", "doc_id", "docno")  # a passage of MS MARCO v2 has its docid too
TITLES = ("title", "headline")
TEXTS = ("text", "contents", "body", "passage")
QUERY_IDS = ("_id", "id", "qid", "query_id", "num", "number")
QUERY_TEXTS = ("text", "query", "question", "title")
QRELS_FIELDS = tuple(Field(names, "") for names in (QUERY_COLUMNS, DOCUMENT_COLUMNS, GRADE_COLUMNS))
_BREAKS = "\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_RUNS = re.compile(f"[{_BREAKS}]+")


class FieldNames(NamedTuple):
    """The names of fields that a user gave; None for the usual ones."""

    id: str | None = None
    title: str | None = None
    text: str | None = None
    query_id: str | None = None
    query_text: str | None = None

    @property
    def of_passages(self) -> tuple[Field, ...]:
        """The fields of a passage: id, title, text."""
        return (
            _field(self.id, IDS, "--id_field"),
            _field(self.title, TITLES, "--title_field")._replace(required=self.title is not None),
            _field(self.text, TEXTS, "--text_field"),
        )

    @property
    def of_queries(self) -> tuple[Field, ...]:
        """The fields of a query: id and text."""
        return (
            _field(self.query_id, QUERY_IDS, "--query_id_field"),
            _field(self.query_text, QUERY_TEXTS, "--query_text_field"),
        )


def _field(name: str | None, usual: tuple[str, ...], flag: str) -> Field:
    return Field(usual if name is None else (name,), flag)


class TextBlock(NamedTuple):
    """Passages or queries one after another.

    Attributes:
        numbers: the line or row number of each, from 1.
        ids: the official ids, not yet checked.
        texts: each on one line; "" if it is empty.
    """

    numbers: Sequence[int]
    ids: Sequence[str]
    texts: Sequence[str]


class Texts(Protocol):
    """Passages or queries."""

    @property
    def name(self) -> str:
        """What messages call them."""

    @property
    def size(self) -> int:
        """The total of the progress bar: bytes, or texts."""

    def read(self, bar: "tqdm[Any] | None" = None) -> Iterator[TextBlock]:
        """Yield the texts in order, some at a time. Raises InputError for a bad one."""

    def where(self, number: int) -> str:
        """Return what errors call the text of this number."""


class Judgements(Protocol):
    """The judgements of a split."""

    @property
    def name(self) -> str:
        """What messages call them."""

    def read(self) -> Iterator[NamedJudgement]:
        """Yield the judgements in order, each pair once. Raises InputError for a bad one."""

    def where(self, number: int) -> str:
        """Return what errors call the judgement of this number."""


class Split(NamedTuple):
    """The queries of a split, and their judgements; None if all queries are kept, judged or not."""

    queries: Sequence[Texts]
    judgements: Judgements | None


class Source(NamedTuple):
    """A collection to import.

    Attributes:
        made_from: what tells it from others, in JSON's types.
    """

    passages: Sequence[Texts]
    splits: Mapping[str, Split]
    made_from: dict[str, Any]


# Files


def put_on_one_line(titles: Sequence[str | None], texts: Sequence[str | None]) -> list[str]:
    """Return each text with its title in front, separated by a blank. A run of line breaks and tabs becomes a blank."""
    lines = [text.strip() if text else "" for text in texts]
    if any(titles):
        lines = [
            f"{title.strip()} {line}".strip() if title else line for title, line in zip(titles, lines, strict=True)
        ]
    together = "".join(lines)
    for character in _BREAKS:
        if character in together:  # looking at all texts at once takes a tenth of the time
            lines = [_RUNS.sub(" ", line) if character in line else line for line in lines]
    return lines


@dataclass(frozen=True)
class TextFile:
    """A file of passages or queries.

    Attributes:
        records: a file with the fields id, title and text, or id and text.
    """

    records: RecordFile

    @property
    def name(self) -> str:
        """See :class:`Texts`."""
        return str(self.records.path)

    @property
    def size(self) -> int:
        """See :class:`Texts`: its bytes."""
        return self.records.path.stat().st_size

    def where(self, number: int) -> str:
        """See :class:`Texts`."""
        return self.records.where(number)

    def read(self, bar: "tqdm[Any] | None" = None) -> Iterator[TextBlock]:
        """See :class:`Texts`."""
        for numbers, (ids, *rest) in self.records.read(bar):
            titles, texts = rest if len(rest) == 2 else ((None,) * len(ids), *rest)
            if set(map(type, ids)) != {str}:
                ids = [self._id(id_, number) for number, id_ in zip(numbers, ids, strict=True)]
            if not set(map(type, texts)) | set(map(type, titles)) <= {str, type(None)}:
                self._refuse_kind(numbers, titles, texts)
            yield TextBlock(numbers, ids, put_on_one_line(titles, texts))

    def _id(self, value: object, number: int) -> str:
        if type(value) is str:
            return value
        if type(value) is not int:
            raise InputError(f"{self.where(number)}: the id is {_shown(value)}, expected a text or a whole number")
        return str(value)

    def _refuse_kind(self, numbers: Sequence[int], *columns: Sequence[Any]) -> NoReturn:
        """Raise InputError for the first value that is neither a text nor None."""
        bad = next(
            (number, value)
            for number, *values in zip(numbers, *columns, strict=True)
            for value in values
            if value is not None and type(value) is not str
        )
        raise InputError(f"{self.where(bad[0])}: the text is {_shown(bad[1])}, expected a text")


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


@dataclass(frozen=True)
class QrelsFile:
    """A file of judgements: TREC's four columns, three columns with BEIR's header, JSONL, CSV or Parquet."""

    path: Path

    @property
    def name(self) -> str:
        """See :class:`Judgements`."""
        return str(self.path)

    @cached_property
    def _records(self) -> RecordFile | None:
        """The file as one of records; None for columns without names, or with BEIR's."""
        records = RecordFile(self.path, QRELS_FIELDS)
        return None if records.format == "TSV" else records

    def where(self, number: int) -> str:
        """See :class:`Judgements`."""
        return self._records.where(number) if self._records else f"{self.path}, line {number}"

    def read(self) -> Iterator[NamedJudgement]:
        """See :class:`Judgements`."""
        if self._records is None:
            return read_named_judgements(self.path)
        return merge_judgements(self._read_records(self._records), self.where)

    def _read_records(self, records: RecordFile) -> Iterator[NamedJudgement]:
        for numbers, columns in records.read():
            for number, *values in zip(numbers, *columns, strict=True):
                qid, docid, grade = (str(value) if type(value) in (int, float) else value for value in values)
                for value in (qid, docid, grade):
                    if type(value) is not str:
                        raise InputError(f"{self.where(number)}: has {_shown(value)}, expected query, document, grade")
                yield number, qid, docid, parse_grade(grade.removesuffix(".0"), self.where(number))


def describe_file(path: Path) -> dict[str, Any]:
    """Return what tells a file from others: its name, size and SHA-256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest_file(path)}


def read_files(
    corpus: Sequence[Path], queries: Mapping[str, Sequence[Path]], qrels: Mapping[str, Path], fields: FieldNames
) -> Source:
    """Return the source of files of one's own.

    Args:
        corpus: the files of the passages, in order.
        queries, qrels: split -> its files. A split may lack qrels.

    Raises:
        InputError: a file is missing, or a split has qrels without queries.
    """
    for split in qrels:
        if split not in queries:
            raise InputError(f"--qrels {split}=…: the split {split} has no queries; give --queries {split}=FILE")
    passages = [TextFile(RecordFile(path, fields.of_passages)) for path in corpus]
    splits = {}
    for split, paths in queries.items():
        texts = [TextFile(RecordFile(path, fields.of_queries)) for path in paths]
        splits[split] = Split(texts, QrelsFile(qrels[split]) if split in qrels else None)
    for flag, paths in {
        "--corpus": corpus,
        **{f"--queries {split}=": paths for split, paths in queries.items()},
    }.items():
        twice = next((path for path in paths if list(paths).count(path) > 1), None)
        if twice is not None:
            raise InputError(f"{flag}: names {twice} twice")
    named = [*corpus, *(path for paths in queries.values() for path in paths), *qrels.values()]
    described = {path: describe_file(path) for path in _existing(named)}
    made_from = {
        "corpus": [described[path] for path in corpus],
        "queries": {split: [described[path] for path in paths] for split, paths in queries.items()},
        "qrels": {split: described[path] for split, path in qrels.items()},
        "fields": {name: value for name, value in fields._asdict().items() if value is not None},
    }
    return Source(passages, splits, made_from)


def _existing(paths: Sequence[Path]) -> dict[Path, None]:
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; a file is expected")
        if path.exists() and not path.is_file():
            raise InputError(
                f"{path}: is a pipe or a device; write it to a file first, since it is read more than once"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    return dict.fromkeys(paths)


def read_beir(folder: Path, fields: FieldNames) -> Source:
    """Return the source of a BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/{split}.tsv``, gzipped or not.

    The queries of all splits lie in one file. Those of a split are the ones that its qrels judge.

    Raises:
        InputError: one of them is missing, or the name of a qrels file cannot be that of a split.
    """
    corpus, queries = (find_source_file(folder, f"{name}.jsonl") for name in ("corpus", "queries"))
    if corpus is None or queries is None:
        lacking = "corpus.jsonl" if corpus is None else "queries.jsonl"
        raise InputError(
            f"{folder / lacking}: no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv. For "
            "other files, give --corpus, --queries and --qrels"
        )
    qrels = {
        path.name.removesuffix(".gz").removesuffix(".tsv"): path
        for pattern in ("*.tsv.gz", "*.tsv")  # an unpacked file comes before a packed one
        for path in sorted((folder / "qrels").glob(pattern))
        if not path.name.startswith(".")  # of a file manager
    }
    if not qrels:
        raise InputError(f"{folder / 'qrels'}: has no file SPLIT.tsv, such as test.tsv")
    for split, path in qrels.items():
        try:
            parse_split(split)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{path}: {error}; rename the file") from None
    return read_files([corpus], dict.fromkeys(sorted(qrels), [queries]), qrels, fields)


# ir_datasets


def read_ir_datasets(names: Sequence[str], fields: FieldNames) -> Source:
    """Return the source of data sets of ir_datasets, such as ``beir/scifact/test``. Each becomes a split.

    A split is called by what its name has behind that of its documents: ``test``. Texts are those that ir_datasets
    itself takes for the whole text, with the title in front, unless ``fields`` names others.

    Raises:
        InputError: ir_datasets is not installed, a data set does not exist or lacks queries, or they have different
            documents.
    """
    try:
        import ir_datasets
    except ImportError:
        raise InputError(
            f"{IR_DATASETS}{names[0]}: needs the package ir_datasets; install it: pip install ir_datasets"
        ) from None
    parents = {name: _documents_of(ir_datasets, name) for name in names}
    parent = parents[names[0]]
    for name, other in parents.items():
        if other != parent:
            raise InputError(f"{name} has the documents of {other}, not of {parent}; import them one by one")
    splits = {}
    for name in names:
        data = ir_datasets.load(name)
        if not data.has_queries():
            raise InputError(_lacks(ir_datasets, name, "queries"))
        if not data.has_qrels() and len(names) == 1 and name == parent:
            raise InputError(_lacks(ir_datasets, name, "judgements"))
        split = name.removeprefix(parent).strip("/").replace("/", "-") or "test"
        queries = IrTexts(data, name, "queries", fields.query_text)
        splits[split] = Split([queries], IrJudgements(data, name) if data.has_qrels() else None)
    passages = IrTexts(ir_datasets.load(parent), parent, "docs", fields.text)
    given = {name: value for name, value in fields._asdict().items() if value is not None}
    return Source([passages], splits, {"ir_datasets": list(names), "fields": given})


def _documents_of(ir_datasets: Any, name: str) -> str:
    """Return the data set whose documents ``name`` has."""
    try:
        if not ir_datasets.load(name).has_docs():
            raise InputError(f"{IR_DATASETS}{name}: has no documents")
    except KeyError:
        raise InputError(f"{IR_DATASETS}{name}: ir_datasets has no such data set") from None
    return str(ir_datasets.docs_parent_id(name))


def _lacks(ir_datasets: Any, name: str, what: str) -> str:
    """Return the message about a data set without queries or judgements, which names those below it that have them."""
    known = [other for other in ir_datasets.registry if other.startswith(f"{name}/")]
    below = [f"{IR_DATASETS}{other}" for other in known if ir_datasets.load(other).has_qrels()]
    return f"{IR_DATASETS}{name}: has no {what}" + (f"; give one or more of {', '.join(below)}" if below else "")


def _iterate(start: Callable[[], Iterator[Any]], name: str) -> Iterator[Any]:
    """Yield the records of a data set. Raises InputError if ir_datasets fails, which it does by errors of any kind."""
    try:
        yield from start()
    except Exception as error:  # no network, a licence that is not accepted, a damaged file
        raise InputError(f"{name}: ir_datasets cannot read it ({reason_of(error)})") from None


@dataclass(frozen=True)
class IrTexts:
    """The documents or queries of a data set of ir_datasets.

    Attributes:
        data: the data set.
        id: its name.
        kind: "docs" or "queries".
        field: the field of the texts; None for the text that ir_datasets takes.
    """

    data: Any
    id: str
    kind: str
    field: str | None

    @property
    def name(self) -> str:
        """See :class:`Texts`."""
        return f"{IR_DATASETS}{self.id}, {self.kind}"

    @property
    def size(self) -> int:
        """See :class:`Texts`: the number of texts, 0 if it is not known."""
        count = getattr(self.data, f"{self.kind}_count", None)  # not every data set has it
        return int((count and count()) or 0)

    def where(self, number: int) -> str:
        """See :class:`Texts`."""
        return f"{self.name}, number {number}"

    def read(self, bar: "tqdm[Any] | None" = None) -> Iterator[TextBlock]:
        """See :class:`Texts`."""
        records = _iterate(self.data.docs_iter if self.kind == "docs" else self.data.queries_iter, self.name)
        number = 1
        while block := list(itertools.islice(records, BLOCK_RECORDS)):
            numbers = range(number, number + len(block))
            texts = [self._text(record, number) for number, record in zip(numbers, block, strict=True)]
            yield TextBlock(numbers, [str(record[0]) for record in block], put_on_one_line([], texts))
            number += len(block)
            if bar is not None:
                bar.update(len(block))

    def _text(self, record: Any, number: int) -> str:
        text = record.default_text() if self.field is None else getattr(record, self.field, None)
        if not isinstance(text, str):
            there = ", ".join(record._fields)
            raise InputError(f"{self.where(number)}: has no text {self.field or ''!r}; its fields are {there}")
        return text


@dataclass(frozen=True)
class IrJudgements:
    """The judgements of a data set of ir_datasets."""

    data: Any
    id: str

    @property
    def name(self) -> str:
        """See :class:`Judgements`."""
        return f"{IR_DATASETS}{self.id}, qrels"

    def where(self, number: int) -> str:
        """See :class:`Judgements`."""
        return f"{self.name}, number {number}"

    def read(self) -> Iterator[NamedJudgement]:
        """See :class:`Judgements`."""
        judged = (
            (number, str(qrel.query_id), str(qrel.doc_id), int(qrel.relevance))
            for number, qrel in enumerate(_iterate(self.data.qrels_iter, self.name), start=1)
        )
        return merge_judgements(judged, self.where)
