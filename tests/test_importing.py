"""import_collection.py: the same files from every format; ids that are texts; one sentence for each bad row."""

import bz2
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import drhard.importing
import drhard.names
from drhard.dataset import find_corpus
from drhard.errors import InputError
from drhard.importing import import_collection
from drhard.msmarco import PASSAGE
from drhard.names import NameLookup, Names, copy_names, write_names
from drhard.records import RecordFile
from drhard.sources import FieldNames, read_beir, read_files, read_ir_datasets

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from formats import KINDS, register, write_beir, write_files, write_jsonl

ROOT = Path(__file__).resolve().parent.parent
PASSAGES = [  # id, title, text
    ("007", "The Rhine", "is a river\nthat rises in\tthe alps"),
    ("MED-10", "", "a star is a ball of plasma, 5 < 6 & more"),
    ("Ü-ñ", "", ""),
    ("msmarco_passage_00_0", "Encoders", 'an encoder turns a "text",\r\n\r\ninto a vector'),
]
LINES = [
    "The Rhine is a river that rises in the alps",
    "a star is a ball of plasma, 5 < 6 & more",
    "",
    'Encoders an encoder turns a "text", into a vector',
]
QUERIES = [("q1", "where is the river rhine"), ("007", "what is a star"), ("none", "not judged")]
QRELS = {
    "test": [("q1", "007", 2), ("q1", "Ü-ñ", 1), ("007", "MED-10", 1)],
    "dev": [("q1", "MED-10", 0), ("q1", "007", 1)],
}
WRITTEN = {
    "collection.tsv": "".join(f"{row}\t{line}\n" for row, line in enumerate(LINES)),
    "collection.ids": "007\nMED-10\nÜ-ñ\nmsmarco_passage_00_0\n",
    "queries.test.tsv": "0\twhere is the river rhine\n1\twhat is a star\n",
    "queries.test.ids": "q1\n007\n",
    "qrels.test.tsv": "0\t0\t0\t2\n0\t0\t2\t1\n1\t0\t1\t1\n",
    "test.qrels": "q1 0 007 2\nq1 0 Ü-ñ 1\n007 0 MED-10 1\n",
    "queries.dev.tsv": "0\twhere is the river rhine\n",
    "queries.dev.ids": "q1\n",
    "qrels.dev.tsv": "0\t0\t1\t0\n0\t0\t0\t1\n",
    "dev.qrels": "q1 0 MED-10 0\nq1 0 007 1\n",
}


def small_beir(folder: Path, packed: bool = False) -> Path:
    return write_beir(folder, PASSAGES, QUERIES, QRELS, packed)


def texts_of(folder: Path) -> dict[str, str]:
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in folder.iterdir()
        if path.suffix in (".tsv", ".ids", ".qrels")
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_beir_folder(tmp_path: Path, packed: bool, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "passage" / "dataset"
    source = read_beir(small_beir(tmp_path / "beir", packed), FieldNames())
    imported = import_collection(source, folder, "keep")
    assert imported.new and str(imported) == "4 passages; dev (1 queries, 2 judgements); test (2 queries, 3 judgements)"
    assert texts_of(folder) == WRITTEN
    assert any("kept 1 empty texts" in message for message in caplog.messages)
    names = Names(folder / "collection")
    assert list(names) == [name for name, _, _ in PASSAGES] and names[2] == "Ü-ñ"
    corpus = find_corpus(PASSAGE, folder)
    assert list(corpus.modes) == ["dev", "test"] and corpus.empty_texts == "keep" and corpus.names


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_format_give_the_same(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path, kind, PASSAGES, QUERIES, QRELS)
    queries, qrels = tmp_path / f"queries.{kind}", {split: tmp_path / f"{split}.{kind}" for split in QRELS}
    source = read_files([tmp_path / f"corpus.{kind}"], dict.fromkeys(QRELS, [queries]), qrels, FieldNames())
    import_collection(source, tmp_path / "dataset", "keep")
    assert texts_of(tmp_path / "dataset") == WRITTEN


def test_a_title_may_first_come_later(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one"}, {"id": "b", "title": "Two", "text": "two"}, {"id": "c", "text": "three"}]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    (tmp_path / "queries.tsv").write_text("q\twhat\n")
    source = read_files([tmp_path / "corpus.jsonl"], {"new": [tmp_path / "queries.tsv"]}, {}, FieldNames())
    import_collection(source, tmp_path / "dataset", "keep")
    assert (tmp_path / "dataset" / "collection.tsv").read_text() == "0\tone\n1\tTwo two\n2\tthree\n"


def test_ms_marco_v2(tmp_path: Path) -> None:
    """A passage has the id of its document too."""
    rows = [
        {"pid": f"msmarco_passage_00_{place}", "passage": "text", "docid": "msmarco_doc_00_0"} for place in (0, 172)
    ]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (tmp_path / "queries.tsv").write_text("121352\tdefine extreme\n")
    (tmp_path / "qrels.tsv").write_text("121352\t0\tmsmarco_passage_00_172\t1\n")
    corpus, queries = [tmp_path / "0.gz", tmp_path / "1.gz"], {"train": [tmp_path / "queries.tsv"]}
    source = read_files(corpus, queries, {"train": tmp_path / "qrels.tsv"}, FieldNames())
    import_collection(source, tmp_path / "dataset", "keep")
    written = texts_of(tmp_path / "dataset")
    assert written["collection.ids"] == "msmarco_passage_00_0\nmsmarco_passage_00_172\n"
    assert written["qrels.train.tsv"] == "0\t0\t1\t1\n" and written["queries.train.ids"] == "121352\n"


def test_ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that is registered here."""
    register(tmp_path, "mine", PASSAGES, QUERIES, QRELS, monkeypatch)
    import_collection(read_ir_datasets(["mine/test", "mine/dev"], FieldNames()), tmp_path / "dataset", "keep")
    assert texts_of(tmp_path / "dataset") == WRITTEN
    for names, complaint in {
        ("mine",): "ir_datasets:mine: has no queries; give one or more of ir_datasets:mine/test, ir_datasets:mine/dev",
        ("mine/test", "vaswani"): "vaswani has the documents of vaswani, not of mine; import them one by one",
        ("none/of/these",): "ir_datasets:none/of/these: ir_datasets has no such data set",
    }.items():
        with pytest.raises(InputError, match=complaint):
            read_ir_datasets(names, FieldNames())
    with pytest.raises(InputError, match="docs, number 1: has no text 'body'; its fields are doc_id, text"):
        source = read_ir_datasets(["mine/test"], FieldNames(text="body"))
        import_collection(source, tmp_path / "other", "keep")


def test_ir_datasets_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(InputError, match="needs the package ir_datasets; install it: pip install ir_datasets"):
        read_ir_datasets(["beir/scifact/test"], FieldNames())


# The same input again, and other input


def test_a_second_call_does_nothing_and_other_input_is_refused(tmp_path: Path) -> None:
    folder, beir = tmp_path / "dataset", small_beir(tmp_path / "beir")
    import_collection(read_beir(beir, FieldNames()), folder, "keep")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not import_collection(read_beir(beir, FieldNames()), folder, "keep").new
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(InputError, match="has another collection, .* name another --data_root"):
        import_collection(read_beir(beir, FieldNames()), folder, "skip")
    with open(beir / "corpus.jsonl", "a") as file:
        file.write('{"_id": "new", "text": "more"}\n')
    with pytest.raises(InputError, match="has another collection"):
        import_collection(read_beir(beir, FieldNames()), folder, "keep")


def test_files_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "collection.tsv").write_text("1\ttext\n")
    with pytest.raises(InputError, match="import_collection.py did not write it; name another --data_root"):
        import_collection(read_beir(small_beir(tmp_path / "beir"), FieldNames()), folder, "keep")
    assert (folder / "collection.tsv").read_text() == "1\ttext\n"


def test_two_imports_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finishes first."""
    folder, beir = tmp_path / "dataset", small_beir(tmp_path / "beir")
    read = drhard.importing.read_import

    def quicker(folder: Path) -> object:
        found = read(folder)
        monkeypatch.setattr(drhard.importing, "read_import", read)
        import_collection(read_beir(beir, FieldNames()), folder, "keep")
        return found

    monkeypatch.setattr(drhard.importing, "read_import", quicker)
    with pytest.raises(InputError, match="another process has just written it; run the same command again"):
        import_collection(read_beir(beir, FieldNames()), folder, "keep")
    assert texts_of(folder) == WRITTEN


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    folder, beir = tmp_path / "passage" / "dataset", small_beir(tmp_path / "beir")
    with open(beir / "corpus.jsonl", "a") as file:  # enough to be killed on the way
        file.writelines(f'{{"_id": "d{number}", "text": "text {number}"}}\n' for number in range(300_000))
    command = [sys.executable, ROOT / "import_collection.py", beir, "--data_root", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        unfinished = tmp_path / "passage" / "dataset.partial"
        until = time.monotonic() + 120
        while not list(unfinished.glob("collection.*")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not folder.exists()
    small_beir(tmp_path / "again")
    import_collection(read_beir(tmp_path / "again", FieldNames()), folder, "keep")
    assert texts_of(folder) == WRITTEN and not unfinished.exists()


# Empty texts


def test_empty_texts_are_left_out_with_their_judgements(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import_collection(read_beir(small_beir(tmp_path / "beir"), FieldNames()), tmp_path / "dataset", "skip")
    written = texts_of(tmp_path / "dataset")
    assert written["collection.ids"] == "007\nMED-10\nmsmarco_passage_00_0\n"
    assert written["qrels.test.tsv"] == "0\t0\t0\t2\n1\t0\t1\t1\n"
    assert written["test.qrels"] == WRITTEN["test.qrels"]  # all that were judged
    assert sum("skipped 1 empty texts" in message for message in caplog.messages) == 1
    assert sum("left out 1 judgements of empty texts" in message for message in caplog.messages) == 1


def test_empty_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 3: the text is empty; give --empty_texts skip"):
        import_collection(read_beir(small_beir(tmp_path / "beir"), FieldNames()), tmp_path / "dataset", "refuse")
    assert not (tmp_path / "dataset").exists() and not list(tmp_path.glob("dataset*"))


# Bad input

BAD = {  # of the JSONL corpus: the last line, and what is said of line 2
    '{"_id": "a b", "text": "x"}': r"line 2: the id 'a b' has ' '; runs separate",
    '{"_id": "a\\u00a0b", "text": "x"}': r"line 2: the id 'a\\xa0b' has '\\xa0'",
    '{"_id": "", "text": "x"}': "line 2: the id is empty",
    '{"_id": "a\\u0000", "text": "x"}': "line 2: the id",
    '{"_id": "\\ud800", "text": "x"}': "line 2: the id",
    '{"_id": "a", "text": "half \\ud83d"}': r"line 2: the text has '\\ud83d', half of a character",
    '{"_id": true, "text": "x"}': "line 2: the id is True, expected a text or a whole number",
    '{"_id": null, "text": "x"}': "line 2: the id is null",
    '{"_id": "a", "text": ["x"]}': r"line 2: the text is \['x'\], expected a text",
    '{"_id": "a"}': "line 2: the field 'text' is missing",
    '{"text": "x"}': "line 2: the field '_id' is missing",
    '{"_id": "first", "text": "x"}': r"line 2: the id 'first' is already used in .*corpus\.jsonl, line 1",
    '{"_id": "a", "text": "x"': "line 2: not JSON",
    "[1]": "line 2: expected a JSON object",
    "[" * 100_000: "line 2: not JSON",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:40])
def test_bad_rows(tmp_path: Path, line: str) -> None:
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.tsv"
    corpus.write_text(f'{{"_id": "first", "title": "", "text": "x"}}\n{line}\n')
    queries.write_text("1\twhat\n")
    with pytest.raises(InputError, match=BAD[line]) as error:
        source = read_files([corpus], {"test": [queries]}, {}, FieldNames())
        import_collection(source, tmp_path / "dataset", "keep")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("dataset*"))


FILES = {  # name and content of the corpus, and what is said of it
    (
        "a.jsonl",
        '{"key": "1", "text": "x"}\n',
    ): r"a\.jsonl, line 1: has no field '_id' or .*, but 'key', 'text'; give --id_",
    ("a.tsv", "1\ta\tb\n"): "line 1: has 3 fields; expected 2, _id and text, or their names in the first line",
    ("a.tsv", "1\ta\n2\ta\tb\n"): "line 2: has 3 fields, the first line has 2; replace tabs",
    ("a.tsv", "1\ta\n2\n"): "line 2: has 1 field, the first line has 2",
    ("a.csv", "id,text\n1,a\n2,a,b\n"): "line 3: has 3 fields, the first line has 2",
    ("a.csv", 'id,text\n1,"a\nb"\n2\n'): "line 4: has 1 field, the first line has 2",
    ("a.csv", 'id,text\n1,"a\n'): "not CSV",
    ("a.csv", "1,a\n"): "line 1: has no field '_id' or",
    ("a.trec", "<DOC>\n<DOCNO>1</DOCNO>\n<TEXT>x</TEXT>\n"): "line 1: <doc> does not end",
    ("a.trec", "<DOC>\n<TEXT>x</TEXT>\n</DOC>\n"): "line 1: has no field .*'docno'",
    ("a.csv", "id,text,text\n1,a,b\n"): "line 1: has two fields called 'text'; rename one",
    ("a.tsv", "id\tsentence\n1\ta\n"): "line 1: has no field 'text' .*, but 'id', 'sentence'; give --text_field",
    ("a.tsv", "ID\tText\n1\ta\n"): "line 1: has no field '_id' .*, but 'ID', 'Text'; give --id_field",
    ("a.json", '[{"id": "a",\n"text": "b"}]'): "line 1: not JSON .*; expected an object on each line",
    ("a.json", '[{"id": "a", "text": "b"}]'): "line 1: expected a JSON object on each line",
    ("a.xml", "<topics></topics>"): "has neither <DOC> nor <top>; expected TREC's format",
    ("a.trec", "<DOC>\n</DOC>\n"): "line 1: has no field .*'docno'; give --id_field",
    ("a.tsv", ""): r"a\.tsv: holds no text",
    ("a.tsv", "\n\n"): r"a\.tsv: holds no text",
    ("a.csv", ""): r"a\.csv: holds no text",
    ("a.tsv.gz", "1\ta\n"): r"a\.tsv\.gz: damaged",
    ("a.parquet", "PAR1 this is none"): "damaged|needs pyarrow",
}


@pytest.mark.parametrize(("name", "content"), FILES, ids=lambda text: text[:30])
def test_bad_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "queries.tsv").write_text("1\twhat\n")
    with pytest.raises(InputError, match=FILES[name, content]):
        source = read_files([tmp_path / name], {"test": [tmp_path / "queries.tsv"]}, {}, FieldNames())
        import_collection(source, tmp_path / "dataset", "keep")


PACKED = {
    "a.tsv": (gzip.compress(b"1\ta\n"), "is gzipped; end its name with .gz"),
    "a.zip": (b"PK\x03\x04" + bytes(30), "is a zip archive; unpack it"),
    "a.tsv.bz2": (bz2.compress(b"1\ta\n"), "is packed by bzip2; unpack it"),
    "a.tsv.xz": (lzma.compress(b"1\ta\n"), "is packed by xz; unpack it"),
    "a.tar.gz": (
        gzip.compress(b"name".ljust(257, b"\0") + b"ustar"),
        "is a tar archive; unpack it, and give its files",
    ),
    "a.csv": ("id,text\n1,a\n".encode("utf-16"), "is UTF-16 or UTF-32; convert it to UTF-8"),
    "a.parquet.gz": (gzip.compress(b"PAR1"), "is a gzipped Parquet file; unpack it"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_told_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    content, complaint = PACKED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{name}: {complaint}")):
        list(RecordFile(tmp_path / name, FieldNames().of_passages).read())


def test_a_tsv_file_must_name_the_fields_that_flags_name(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\ta\n")
    with pytest.raises(InputError, match="line 1: has no field 'key', but '1', 'a'; give --id_field"):
        list(RecordFile(tmp_path / "a.tsv", FieldNames(id="key").of_passages).read())


def test_blank_lines_are_left_out(tmp_path: Path) -> None:
    for name, content in {"a.tsv": "\n1\ta\n\r\n2\tb\n\n", "a.csv": "id,text\n1,a\n\n2,b\n"}.items():
        (tmp_path / name).write_text(content)
        [records] = RecordFile(tmp_path / name, FieldNames().of_passages).read()
        assert [list(column) for column in records.columns] == [["1", "2"], [None, None], ["a", "b"]]
        assert list(records.numbers) == [2, 4]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    columns = [pyarrow.array([name]) for name in ("a", "b", "c")]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["id", "id", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has two fields called 'id'; rename one"):
        list(RecordFile(tmp_path / "a.parquet", FieldNames().of_passages).read())


def test_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("1\twhat\n")
    os.mkfifo(tmp_path / "pipe")
    queries = {"test": [tmp_path / "queries.tsv"]}
    for path, complaint in {"pipe": "is a pipe or a device; write it to a file", ".": "is a folder"}.items():
        with pytest.raises(InputError, match=complaint):
            read_files([tmp_path / path], queries, {}, FieldNames())
    with pytest.raises(InputError, match=r"--corpus: names .*queries\.tsv twice"):
        read_files([tmp_path / "queries.tsv"] * 2, queries, {}, FieldNames())


@pytest.mark.parametrize("name", ["test (1)", "x" * 65, "_test"])
def test_the_name_of_a_qrels_file_must_fit_a_split(tmp_path: Path, name: str) -> None:
    beir = write_beir(tmp_path / "beir", PASSAGES, QUERIES, {"test": QRELS["test"], name: QRELS["dev"]})
    with pytest.raises(
        InputError, match=re.escape(f"{beir}/qrels/{name}.tsv: '{name[:40]}' is not the name of a split")
    ):
        read_beir(beir, FieldNames())


def test_hidden_files_are_no_splits(tmp_path: Path) -> None:
    beir = write_beir(tmp_path / "beir", PASSAGES, QUERIES, {"test": QRELS["test"]})
    (beir / "qrels" / "._test.tsv").write_bytes(b"\0\5\x16\7")  # of macOS
    assert list(read_beir(beir, FieldNames()).splits) == ["test"]


def test_errors_of_ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "mine", PASSAGES, QUERIES, QRELS, monkeypatch)
    source = read_ir_datasets(["mine/test"], FieldNames())
    (tmp_path / "docs.tsv").unlink()
    with pytest.raises(InputError, match=r"ir_datasets:mine, docs: ir_datasets cannot read it \(.*docs\.tsv"):
        import_collection(source, tmp_path / "dataset", "keep")


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"1\tfine\n2\t\xff\n")
    (tmp_path / "queries.tsv").write_text("1\twhat\n")
    with pytest.raises(InputError, match=r"a\.tsv, line 2: not UTF-8 text"):
        source = read_files([tmp_path / "a.tsv"], {"test": [tmp_path / "queries.tsv"]}, {}, FieldNames())
        import_collection(source, tmp_path / "dataset", "keep")


def write_small(folder: Path, qrels: str) -> tuple[list[Path], dict[str, list[Path]], dict[str, Path], FieldNames]:
    for name, content in {"docs.tsv": "a\tx\nb\ty\n", "queries.tsv": "1\twhat\n", "test.qrels": qrels}.items():
        (folder / name).write_text(content)
    return [folder / "docs.tsv"], {"test": [folder / "queries.tsv"]}, {"test": folder / "test.qrels"}, FieldNames()


def test_judgements_of_what_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A few are left out, as real collections have them. The measure of a run against test.qrels still counts them."""
    source = read_files(*write_small(tmp_path, "1 0 a 1\n1 0 none 2\n1 0 b 0\n9 0 a 1\n"))
    imported = import_collection(source, tmp_path / "dataset", "keep")
    assert imported.content["splits"]["test"] == {"queries": 1, "empty_queries": 0, "judgements": 2, "left_out": 2}
    assert (tmp_path / "dataset" / "qrels.test.tsv").read_text() == "0\t0\t0\t1\n0\t0\t1\t0\n"
    assert len((tmp_path / "dataset" / "test.qrels").read_text().splitlines()) == 4
    [message] = [message for message in caplog.messages if "judgements" in message]
    assert "2 of 4 judgements name texts that are not there; the first, line 2: the document none is not in" in message


@pytest.mark.parametrize(
    ("qrels", "complaint"),
    [
        ("1 0 none 1\n1 0 a 1\n1 0 other 1\n", "2 of 3 judgements name texts .* do these files belong together"),
        ("9 0 a 1\n", "none of its queries is judged, the judgements name '9'; do these files belong together?"),
        ("1 0 a 1\n1 0 a 2\n", "line 2: query 1 and document a have grade 2 here and 1 in line 1"),
        ("1 0 a high\n", "line 1: the grade 'high' is not a whole number"),
        ("1 a 1\n", "line 1: expected 'qid 0 pid grade', found 3 fields; three need the header 'query-id corpus-id"),
        ("query-id\tcorpus-id\tscore\n1\t0\ta\t1\n", "line 2: expected 'query-id corpus-id score', found 4 fields"),
        ("", "holds no judgement"),
    ],
)
def test_bad_judgements(tmp_path: Path, qrels: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        import_collection(read_files(*write_small(tmp_path, qrels)), tmp_path / "dataset", "keep")
    assert not list(tmp_path.glob("dataset*"))


def test_fields_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"key": 7, "head": "T", "words": "x", "title": "no"}, {"key": 8, "words": None}])
    write_jsonl(tmp_path / "b.jsonl", [{"number": 1, "ask": "what"}])
    fields = FieldNames("key", None, "words", "number", "ask")
    source = read_files([tmp_path / "a.jsonl"], {"lead": [tmp_path / "b.jsonl"]}, {}, fields)
    import_collection(source, tmp_path / "dataset", "keep")
    written = texts_of(tmp_path / "dataset")
    assert written["collection.tsv"] == "0\tno x\n1\t\n" and written["collection.ids"] == "7\n8\n"
    assert written["queries.lead.tsv"] == "0\twhat\n" and "lead.qrels" not in written
    with pytest.raises(InputError, match="line 2: the field 'head' is missing"):
        source = read_files([tmp_path / "a.jsonl"], {"lead": [tmp_path / "b.jsonl"]}, {}, fields._replace(title="head"))
        import_collection(source, tmp_path / "other", "keep")


# Ids that are texts


def test_the_table_of_ids(tmp_path: Path) -> None:
    names = [f"d{number % 97}-{number}" for number in range(1000)]
    with write_names(tmp_path / "table") as writer:
        for first in range(0, 1000, 300):
            writer.add(names[first : first + 300])
    table = Names(tmp_path / "table")
    assert len(table) == 1000 and list(table) == names and table.take([999, 3]) == [names[999], names[3]]
    lookup = NameLookup.of(names)
    assert [lookup.find(name, table) for name in names] == list(range(1000))
    assert lookup.find("none", table) == -1 and lookup.find_twice(table) is None
    copy_names(table, np.array([5, 5, 0]), tmp_path / "some")
    some = Names(tmp_path / "some")
    assert list(some) == [names[5], names[5], names[0]]
    assert NameLookup.of(some).find_twice(some) == names[5]
    assert some.digest() != table.digest()


def test_two_ids_with_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.names, "hash", len, raising=False)
    monkeypatch.setattr(drhard.importing, "hash", len, raising=False)
    source = read_files(*write_small(tmp_path, "1 0 b 1\n1 0 a 2\n"))
    import_collection(source, tmp_path / "dataset", "keep")
    assert (tmp_path / "dataset" / "qrels.test.tsv").read_text() == "0\t0\t1\t1\n0\t0\t0\t2\n"


@pytest.mark.parametrize("damage", ["shorter", "no line end", "not UTF-8"])
def test_damaged_tables(tmp_path: Path, damage: str) -> None:
    with write_names(tmp_path / "table") as writer:
        writer.add(["one", "two"])
    content = {"shorter": b"one\n", "no line end": b"one twox", "not UTF-8": b"one\n\xff\xff\xff\n"}[damage]
    (tmp_path / "table.ids").write_bytes(content)
    with pytest.raises(InputError, match="table.ids"):
        list(Names(tmp_path / "table"))


def test_the_format_shows_in_the_content(tmp_path: Path) -> None:
    for content, kind in {'\ufeff {"a": 1}': "JSONL", "<DOC>": "TREC", "a\tb": "TSV", "": "TSV"}.items():
        (tmp_path / "file.txt").write_text(content, encoding="utf-8")
        assert RecordFile(tmp_path / "file.txt", ()).format == kind
