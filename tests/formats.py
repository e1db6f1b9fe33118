"""Write a small collection in every format that import_collection.py reads."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from drhard.sources import put_on_one_line

import ir_datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

Passages = Sequence[tuple[str, str, str]]  # id, title, text
Queries = Sequence[tuple[str, str]]  # id, text
Judged = Sequence[tuple[str, str, int]]  # query, passage, grade
Rows = list[dict[str, object]]


def write_jsonl(path: Path, rows: Rows) -> None:
    """With and without escapes of letters beyond ASCII."""
    lines = [json.dumps(row, ensure_ascii=bool(number % 2)) for number, row in enumerate(rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: Rows) -> None:
    """Without line breaks and tabs in the texts, which the format cannot have."""
    values = [list(rows[0]), *(put_on_one_line([], [str(value) for value in row.values()]) for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in values), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


FORMATS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
}
KINDS = (*FORMATS, "trec")


def write_files(folder: Path, kind: str, passages: Passages, queries: Queries, qrels: dict[str, Judged]) -> list[str]:
    """Write files of a format. Return the flags of import_collection.py that name them."""
    corpus, asked = folder / f"corpus.{kind}", folder / f"queries.{kind}"
    if kind == "trec":
        corpus.write_text("\n".join(_trec_document(*passage) for passage in passages), encoding="utf-8")
        asked.write_text("".join(_trec_topic(*query) for query in queries), encoding="utf-8")
    else:
        FORMATS[kind](corpus, [{"docid": id_, "title": head, "contents": words} for id_, head, words in passages])
        FORMATS[kind](asked, [{"qid": id_, "query": words} for id_, words in queries])
    for split, judged in qrels.items():
        path = folder / f"{split}.{kind}"
        if kind in ("trec", "tsv"):
            write_qrels(path, judged)
        else:
            FORMATS[kind](path, [{"query-id": q, "corpus-id": d, "score": g} for q, d, g in judged])
    splits = [(split, f"{split}={asked}", f"{split}={folder / f'{split}.{kind}'}") for split in qrels]
    return ["--corpus", str(corpus), "--queries", *(of for _, of, _ in splits), "--qrels", *(of for *_, of in splits)]


def _trec_document(id_: str, title: str, text: str) -> str:
    words = text.replace("&", "&amp;").replace("<", "&lt;")
    head = f"<HEADLINE>\n{title}\n</HEADLINE>\n" if title else ""
    return f"<DOC>\n<DOCNO> {id_} </DOCNO>\n<DATE>1990</DATE>\n{head}<TEXT>\n<P>{words}</P>\n</TEXT>\n</DOC>\n"


def _trec_topic(id_: str, words: str) -> str:
    more = "<desc> Description:\nmore\n<narr> Narrative:\nmore\n"
    return f"<top>\n\n<num> Number: {id_}\n<title> {words}\n\n{more}</top>\n"


def write_qrels(path: Path, judged: Judged) -> None:
    """Write TREC's four columns."""
    path.write_text("".join(f"{q} 0 {d} {g}\n" for q, d, g in judged), encoding="utf-8")


def write_beir(
    folder: Path, passages: Passages, queries: Queries, qrels: dict[str, Judged], packed: bool = False
) -> Path:
    """Write a BEIR folder, gzipped if it is ``packed``."""
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", [{"_id": id_, "title": head, "text": words} for id_, head, words in passages])
    write_jsonl(folder / "queries.jsonl", [{"_id": id_, "text": words, "metadata": {}} for id_, words in queries])
    for split, judged in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, one)) for one in judged)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if packed:
        for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*")]:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder


def register(
    folder: Path,
    name: str,
    passages: Passages,
    queries: Queries,
    qrels: dict[str, Judged],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Register ``name`` of ir_datasets with the documents, and a data set below it for each split. Return these."""
    known = ir_datasets.registry._registered
    ids, heads, texts = zip(*passages, strict=True)
    lines = [f"{id_}\t{line}\n" for id_, line in zip(ids, put_on_one_line(heads, texts), strict=True)]
    (folder / "docs.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "queries.tsv").write_text("".join(f"{id_}\t{words}\n" for id_, words in queries), encoding="utf-8")
    parent = ir_datasets.create_dataset(folder / "docs.tsv")
    monkeypatch.setitem(known, name, parent)
    for split, judged in qrels.items():
        path = folder / f"{split}.ir_datasets"
        write_qrels(path, judged)
        of_split = ir_datasets.create_dataset(None, folder / "queries.tsv", path)
        parts = parent.docs_handler(), of_split.queries_handler(), of_split.qrels_handler()
        monkeypatch.setitem(known, f"{name}/{split}", ir_datasets.datasets.base.Dataset(*parts))
    return [f"ir_datasets:{name}/{split}" for split in qrels]


def parse_csv(line: str, where: str) -> tuple[int, str]:
    """Parse ``pid,text``. It is here because worker processes import it, and with it this module."""
    pid, _, text = line.partition(",")
    return int(pid), text
