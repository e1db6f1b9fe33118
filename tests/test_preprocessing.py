"""preprocess: the same rows whatever the number of workers, the size of a batch, or the packing of the source."""

import gzip
import pickle
from pathlib import Path

import drhard.preprocessing
from drhard.errors import InputError
from drhard.msmarco import DOC, PASSAGE
from drhard.preprocessing import Lengths, preprocess
from drhard.tokenizer import RobertaTokenizer
from drhard.tokens import PASSAGES, TokenMemmap

import numpy as np
import pytest
from helpers import TEXTS, snapshot, vocabulary

LENGTHS = Lengths(doc_tokens=12, query_tokens=6, doc_characters=10)
PIDS = [900 - 7 * number for number in range(50)]  # neither ascending nor from 0


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    vocab, merges = vocabulary()
    return RobertaTokenizer(vocab, list(merges), do_lower_case=True)


def text_of(pid: int) -> str:
    return f"{pid} {TEXTS[pid % 4]}"


def write_source(root: Path) -> Path:
    dataset = root / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "collection.tsv").write_text("".join(f"{pid}\t{text_of(pid)}\n" for pid in PIDS))
    (dataset / "queries.train.tsv").write_text("3\twhere is it\n1\tnobody judged this\n2\tWhat is a star\n")
    (dataset / "qrels.train.tsv").write_text(f"2\t0\t{PIDS[4]}\t1\n3 0 {PIDS[0]} 0\n2\t0\t{PIDS[49]}\t2\n")
    (dataset / "queries.eval.small.tsv").write_text("1\tnobody judged this\n9\tnor this\n")
    return root


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tokenizer: RobertaTokenizer) -> Path:
    root = write_source(tmp_path_factory.mktemp("reference") / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    return root / "preprocess"


def test_rows_are_the_texts_in_their_order(reference: Path, tokenizer: RobertaTokenizer) -> None:
    tokens = TokenMemmap(reference, PASSAGES, 12)
    ids, _ = tokens.batch(np.arange(50), tokenizer.pad_token_id)
    for pid, row, length in zip(PIDS, ids, tokens.lengths, strict=True):
        expected = tokenizer.encode(text_of(pid)[:10], max_length=12, truncation=True)
        assert row[:length].tolist() == expected
        assert length < 12  # so it was the characters that cut it
    raw = np.fromfile(reference / "passages.memmap", dtype=np.int32).reshape(50, 12)
    assert all(not row[length:].any() for row, length in zip(raw, tokens.lengths, strict=True))  # padded with 0
    assert pickle.loads((reference / "pid2offset.pickle").read_bytes()) == {pid: row for row, pid in enumerate(PIDS)}


def test_judged_queries_are_kept_and_all_of_the_leaderboard(reference: Path, tokenizer: RobertaTokenizer) -> None:
    assert pickle.loads((reference / "train-qid2offset.pickle").read_bytes()) == {3: 0, 2: 1}
    assert pickle.loads((reference / "lead-qid2offset.pickle").read_bytes()) == {1: 0, 9: 1}
    assert (reference / "train-qrel.tsv").read_text() == "1\t0\t4\t1\n0\t0\t0\t0\n1\t0\t49\t2\n"
    assert not (reference / "lead-qrel.tsv").exists()
    ids, mask = TokenMemmap(reference, "train-query", 6).batch(np.array([1]), tokenizer.pad_token_id)
    assert ids[mask == 1].tolist() == tokenizer.encode("what is a star", max_length=6, truncation=True)


@pytest.mark.parametrize("way", ["two workers, small batches", "packed", "packed in two members"])
def test_the_way_there_changes_nothing(
    tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_source(tmp_path / "passage")
    if way.startswith("packed"):
        source = root / "dataset" / "collection.tsv"
        content = source.read_bytes()
        half = len(content) // 2 if "two" in way else len(content)
        (root / "dataset" / "collection.tsv.gz").write_bytes(
            b"".join(gzip.compress(part) for part in (content[:half], content[half:]) if part)
        )
        source.unlink()
    else:
        monkeypatch.setattr(drhard.preprocessing, "BATCH_BYTES", 100)
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=2 if "workers" in way else 1)
    assert snapshot(root / "preprocess") == snapshot(reference)


def test_documents_are_url_title_body(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    dataset = tmp_path / "doc" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "msmarco-docs.tsv").write_text("D7\thttp://a\tthe title\tthe body\nD5\thttp://b\t\tend\n")
    preprocess(DOC, tmp_path / "doc", tokenizer, Lengths(30, 6, 100), workers=1)
    folder = tmp_path / "doc" / "preprocess"
    ids, mask = TokenMemmap(folder, PASSAGES, 30).batch(np.arange(2), tokenizer.pad_token_id)
    texts = [tokenizer.decode(row[row_mask == 1]) for row, row_mask in zip(ids, mask, strict=True)]
    assert texts[1] == "<s> http://b<sep><sep>end</s>"
    assert tokenizer.encode("http://a<sep>the title<sep>the body", max_length=30, truncation=True) == (
        ids[0][mask[0] == 1].tolist()
    )
    assert pickle.loads((folder / "pid2offset.pickle").read_bytes()) == {7: 0, 5: 1}


def test_failing_again_leaves_the_earlier_files(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_source(tmp_path / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    before = snapshot(root / "preprocess")
    with open(root / "dataset" / "collection.tsv", "a") as file:
        file.write("no tab\n")
    with pytest.raises(InputError, match=r"collection\.tsv, line 51"):
        preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    assert snapshot(root / "preprocess") == before
