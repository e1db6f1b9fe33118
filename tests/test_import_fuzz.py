"""Collections of any texts, in every format, against a reader of the standard library and pyarrow."""

import csv
import io
import json
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from drhard.errors import InputError
from drhard.importing import import_collection
from drhard.sources import FieldNames, read_files

import pyarrow.parquet as parquet
import pytest
from formats import FORMATS, write_qrels
from hypothesis import example, given, settings
from hypothesis import strategies as st

CHARACTERS = st.characters(exclude_categories=["Cs"])  # all but halves of a surrogate pair
ANY_TEXT = st.text(CHARACTERS, max_size=30)
ID = st.text(CHARACTERS, min_size=1, max_size=8).filter(
    lambda text: not any(one.isspace() or unicodedata.category(one) == "Cc" or one == "\ufeff" for one in text)
)


def plain(text: str) -> str:
    """A text on one line, character by character."""
    line = ""
    for one in text.strip():
        is_break = one == "\t" or len(f"a{one}b".splitlines()) > 1 or one == "\x1f"
        line += one if not is_break else "" if line.endswith("\0break") else "\0break"
    return line.replace("\0break", " ")


def read_back(path: Path) -> Iterator[dict[str, str]]:
    """The records of a file, as other programs read them."""
    if path.suffix == ".parquet":
        yield from parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        yield from map(json.loads, path.read_bytes().decode().split("\n")[:-1])
    elif path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))
    else:
        names, *lines = (line.split("\t") for line in path.read_bytes().decode().split("\n")[:-1])
        yield from (dict(zip(names, line, strict=True)) for line in lines)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(ID, ANY_TEXT, ANY_TEXT), min_size=1, max_size=6, unique_by=lambda row: row[0]))
@example([("007", "\ufeffA title", "text\r\n\r\n\u2028end"), ("7", "", " \x00\x1b[31m \x85"), ('"', "'", '"a""b",\\')])
def test_what_is_imported_is_what_others_read(kind: str, passages: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[dict[str, object]] = [{"id": id_, "title": title, "text": text} for id_, title, text in passages]
        FORMATS[kind](folder / f"corpus.{kind}", rows)
        (folder / "queries.tsv").write_text("q\twhat\n")
        write_qrels(folder / "qrels", [("q", id_, grade) for grade, (id_, _, _) in enumerate(passages)])
        splits = {"test": [folder / "queries.tsv"]}
        source = read_files([folder / f"corpus.{kind}"], splits, {"test": folder / "qrels"}, FieldNames())
        import_collection(source, folder / "dataset", "keep")

        read = list(read_back(folder / f"corpus.{kind}"))
        texts = [plain(f"{of['title'].strip()} {of['text'].strip()}") for of in read]
        written = (folder / "dataset" / "collection.tsv").read_bytes().decode()
        assert written == "".join(f"{row}\t{text}\n" for row, text in enumerate(texts))
        assert (folder / "dataset" / "collection.ids").read_bytes().decode().split("\n")[:-1] == [
            of["id"] for of in read
        ]
        judged = [f"0\t0\t{row}\t{row}\n" for row in range(len(read))]
        assert (folder / "dataset" / "qrels.test.tsv").read_text() == "".join(judged)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=120)
    | st.text('{}[]":,<>/DOCNTEXtop \t\n\r\0idtext_a1"', max_size=120).map(str.encode)
    | st.lists(st.sampled_from(['{"id": "a", "text": "x"}', "a\tx", "<DOC>", "</DOC>", "<TEXT>", "id,text"])).map(
        lambda lines: "\n".join(lines).encode()
    ),
    st.sampled_from(["corpus.jsonl", "corpus.tsv", "corpus.csv", "corpus.parquet", "corpus.trec", "corpus.tsv.gz"]),
)
@example(b"PAR1PAR1", "corpus.parquet")
@example(b"PAR1" + bytes(40) + b"\x10\0\0\0PAR1", "corpus.parquet")
def test_any_bytes_are_imported_or_refused_in_one_sentence(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, queries = Path(folder, name), Path(folder, "queries.tsv")
        path.write_bytes(content)
        queries.write_text("q\twhat\n")
        try:
            import_collection(read_files([path], {"new": [queries]}, {}, FieldNames()), Path(folder, "dataset"), "keep")
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error).strip()
            assert not Path(folder, "dataset").exists()
        else:
            ids = Path(folder, "dataset", "collection.ids").read_bytes().decode().split("\n")[:-1]
            lines = Path(folder, "dataset", "collection.tsv").read_bytes().decode().split("\n")[:-1]
            assert len(ids) == len(lines) == len(set(ids)) and all(line.count("\t") == 1 for line in lines)
