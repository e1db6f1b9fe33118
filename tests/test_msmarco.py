"""MS MARCO's text files: fields, ids, and the sentence for each bad line."""

from pathlib import Path

from drhard.errors import InputError
from drhard.msmarco import (
    CORPORA,
    find_source_file,
    parse_document,
    parse_id,
    parse_passage,
    parse_query,
)

import pytest

LARGEST = 2**31 - 1  # ids live in int32 files


def test_official_files() -> None:
    passage, doc = CORPORA["passage"], CORPORA["doc"]
    assert (passage.collection, doc.collection) == ("collection.tsv", "msmarco-docs.tsv")
    assert (passage.pid_prefix, doc.pid_prefix) == ("", "D")
    assert {mode: (split.queries, split.qrels) for mode, split in passage.modes.items()} == {
        "train": ("queries.train.tsv", "qrels.train.tsv"),
        "dev": ("queries.dev.small.tsv", "qrels.dev.small.tsv"),
        "test": ("msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
        "lead": ("queries.eval.small.tsv", None),
    }
    assert {mode: (split.queries, split.qrels) for mode, split in doc.modes.items()} == {
        "train": ("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
        "dev": ("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
        "test": ("msmarco-test2019-queries.tsv", "2019qrels-docs.txt"),
        "lead": ("docleaderboard-queries.tsv", None),
    }


@pytest.mark.parametrize(
    "field, prefix, number", [("0", "", 0), ("120", "", 120), (str(LARGEST), "", LARGEST), ("D7", "D", 7)]
)
def test_ids(field: str, prefix: str, number: int) -> None:
    assert parse_id(field, prefix, "there") == number


@pytest.mark.parametrize(
    "field, prefix",
    [
        ("", ""),
        ("x1", ""),
        ("-1", ""),
        ("+1", ""),
        ("1.0", ""),
        ("1_0", ""),
        ("1 2", ""),
        ("D1", ""),
        ("1", "D"),
        ("D", "D"),
        ("DD1", "D"),
        ("d1", "D"),
        ("D 1", "D"),
        ("١", ""),
        ("²", ""),
        (str(LARGEST + 1), ""),
        ("9" * 5000, ""),  # more digits than int() takes
        ("00000132", ""),
        ("00", ""),
        (" 12", ""),
        ("12 ", ""),
        ("12\n", ""),
        ("D012", "D"),
        (" D12", "D"),
        ("1\0", ""),
        ("-0", ""),
    ],
)
def test_what_is_no_id(field: str, prefix: str) -> None:
    with pytest.raises(InputError, match="^collection.tsv, line 3: the id "):
        parse_id(field, prefix, "collection.tsv, line 3")


def test_lines() -> None:
    assert parse_query("7\twhere is it  ", "") == (7, "where is it")
    assert parse_query("7\twhere\t \t", "") == (7, "where")
    assert parse_query("7\t \u3000 ", "") == (7, "")
    assert parse_passage("12\t", "") == (12, "")
    assert parse_passage("12\t  a passage\xa0", "") == (12, "  a passage")
    assert parse_document("D3\thttp://x \ttitle\t body ", "") == (3, "http://x<sep>title<sep> body")
    assert parse_document("D3\turl\t\t", "") == (3, "url<sep><sep>")
    assert parse_document("D3\turl\tt\tb\t", "") == (3, "url<sep>t<sep>b")


@pytest.mark.parametrize(
    "parse, line, complaint",
    [
        (parse_query, "7 where is it", "expected 'qid <tab> query'"),
        (parse_query, "", "expected 'qid <tab> query'"),
        (parse_query, "seven\twhere", "the id 'seven'"),
        (parse_query, "7\twhere\tmore", "expected 'qid <tab> query', found text after another tab; replace tabs"),
        (parse_query, "007\twhere", "the id '007' is not a whole number .*; write 7 in all files"),
        (parse_passage, "12", "expected 'pid <tab> passage'"),
        (parse_passage, "D12\ttext", "the id 'D12'"),
        (parse_passage, "12\tone\t\ttwo", "expected 'pid <tab> passage', found text after another tab"),
        (
            parse_passage,
            "msmarco_passage_00_0\ttext",
            "the id .* MS MARCO v2's ids are texts: import_collection.py takes",
        ),
        (parse_document, "msmarco_doc_00_0\tu\tt\tb", "the id 'msmarco_doc_00_0' .* MS MARCO v2's ids are texts"),
        (parse_document, "D07\tu\tt\tb", "the id 'D07' is not 'D' and a whole number .*; write D7 in all files"),
        (parse_document, "D3\turl\ttitle\tbody\tmore", "expected .*, found text after another tab"),
        (parse_document, "D3\turl\ttitle", "expected .* found 3 fields"),
        (parse_document, "3\turl\ttitle\tbody", "the id '3'"),
    ],
)
def test_bad_lines(parse: object, line: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^file.tsv, line 4: {complaint}"):
        parse(line, "file.tsv, line 4")


def test_source_file_takes_the_unpacked_one_first(tmp_path: Path) -> None:
    assert find_source_file(tmp_path, "a.tsv") is None
    (tmp_path / "a.tsv.gz").touch()
    assert find_source_file(tmp_path, "a.tsv") == tmp_path / "a.tsv.gz"
    (tmp_path / "a.tsv").touch()
    assert find_source_file(tmp_path, "a.tsv") == tmp_path / "a.tsv"
