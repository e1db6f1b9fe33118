"""preprocess: the same rows whatever the number of workers, the size of a batch, or the packing of the source."""

import gzip
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import drhard.preprocessing
import drhard.workers
from drhard import processes
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import sole_writer
from drhard.ids import read_ids
from drhard.msmarco import DOC, PASSAGE
from drhard.preprocessing import Lengths, preprocess
from drhard.texts import read_passage_texts, read_query_texts
from drhard.tokenizer import RobertaTokenizer
from drhard.tokens import PASSAGES, TokenMemmap
from drhard.workers import Batch, Rows

import numpy as np
import pytest
import sharing
from formats import parse_csv
from helpers import TEXTS, AtOnce, no_larger_files_than, parse_flags, snapshot, the_error, vocabulary

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
    tokens = TokenMemmap.open(reference, PASSAGES, 12)
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
    ids, mask = TokenMemmap.open(reference, "train-query", 6).batch(np.array([1]), tokenizer.pad_token_id)
    assert ids[mask == 1].tolist() == tokenizer.encode("what is a star", max_length=6, truncation=True)


@pytest.mark.parametrize("way", ["two workers, small batches", "few rows at a time", "packed", "packed in two members"])
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
    elif way == "few rows at a time":
        monkeypatch.setattr(drhard.preprocessing, "BATCH_TOKENS", 40)
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
    ids, mask = TokenMemmap.open(folder, PASSAGES, 30).batch(np.arange(2), tokenizer.pad_token_id)
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


def test_metas_say_what_made_them(reference: Path, tokenizer: RobertaTokenizer) -> None:
    for name, width in ((PASSAGES, 12), ("train-query", 6), ("lead-query", 6)):
        tokens = TokenMemmap.open(reference, name, width)
        assert tokens.tokenizer == tokenizer.digest()
        rows = np.memmap(tokens.path, dtype=np.int32, mode="r")
        assert tokens.max_token_id == rows.max()


@pytest.mark.parametrize("name", ["collection.tsv", "queries.train.tsv", "qrels.train.tsv", "queries.eval.small.tsv"])
def test_a_byte_order_mark_changes_nothing(
    tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer, name: str
) -> None:
    path = write_source(tmp_path / "passage") / "dataset" / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    preprocess(PASSAGE, tmp_path / "passage", tokenizer, LENGTHS, workers=1)
    assert snapshot(tmp_path / "passage" / "preprocess") == snapshot(reference)


# Empty texts


def write_empty(root: Path) -> Path:
    """A collection in which the second and the fourth text are empty, and a query of three that are judged."""
    dataset = root / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "collection.tsv").write_text("7\tthe river\n8\t \n5\ta star\n6\t\n4\tthe sea\n")
    (dataset / "queries.train.tsv").write_text("3\t \u3000\n1\twhere is it\n2\twhat is it\n9\t\n")
    (dataset / "qrels.train.tsv").write_text("1\t0\t5\t1\n2\t0\t6\t1\n2\t0\t4\t2\n3\t0\t4\t1\n")
    return root


def ids_of(path: Path) -> list[int]:
    return read_ids(path).tolist()


@pytest.mark.parametrize("batch_bytes", [1, 1000])  # 1: line by line, so nothing is left of a batch
def test_empty_texts_are_left_out_with_their_judgements(
    tmp_path: Path,
    tokenizer: RobertaTokenizer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    batch_bytes: int,
) -> None:
    monkeypatch.setattr(drhard.preprocessing, "BATCH_BYTES", batch_bytes)
    root = write_empty(tmp_path / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1, empty_texts="skip")
    folder = root / "preprocess"
    assert ids_of(folder / "pid2offset.pickle") == [7, 5, 4]
    assert ids_of(folder / "train-qid2offset.pickle") == [1, 2]
    assert (folder / "train-qrel.tsv").read_text() == "0\t0\t1\t1\n1\t0\t2\t2\n"
    assert TokenMemmap.open(folder, PASSAGES, 12).lengths.min() > 2
    messages = [message.partition("dataset/")[2] for message in caplog.messages]
    assert [message for message in messages if "empty" in message] == [
        "collection.tsv: skipped 2 empty texts",
        "queries.train.tsv: skipped 1 empty texts",
        "qrels.train.tsv: skipped 2 judgements of empty texts",
    ]
    assert list(read_passage_texts(PASSAGE, root / "dataset", Collection(root / "preprocess"))) == [
        "the river",
        "a star",
        "the sea",
    ]
    assert read_query_texts(PASSAGE, root / "dataset", Collection(root / "preprocess"), "train") == [
        "where is it",
        "what is it",
    ]


def test_empty_texts_are_kept_as_rows_without_words(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_empty(tmp_path / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1, empty_texts="keep")
    folder = root / "preprocess"
    assert ids_of(folder / "pid2offset.pickle") == [7, 8, 5, 6, 4]
    assert (folder / "train-qrel.tsv").read_text() == "1\t0\t2\t1\n2\t0\t3\t1\n2\t0\t4\t2\n0\t0\t4\t1\n"
    ids, mask = TokenMemmap.open(folder, PASSAGES, 12).batch(np.array([1, 3]), 1)
    assert ids.tolist() == [[0, 2], [0, 2]]
    assert mask.all()
    assert list(read_passage_texts(PASSAGE, root / "dataset", Collection(root / "preprocess"))) == [
        "the river",
        "",
        "a star",
        "",
        "the sea",
    ]


def test_text_behind_many_blanks_is_not_empty(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    for way in ("refuse", "skip"):
        dataset = tmp_path / way / "dataset"
        dataset.mkdir(parents=True)
        (dataset / "collection.tsv").write_text(f"7\t{' ' * 20}\u3000the river\n8\t\xa0\u3000é\n")
        preprocess(PASSAGE, tmp_path / way, tokenizer, LENGTHS, workers=1, empty_texts=way)
        ids, mask = TokenMemmap.open(tmp_path / way / "preprocess", PASSAGES, 12).batch(np.arange(2), 1)
        assert ids[0][mask[0] == 1].tolist() == tokenizer.encode("the river", max_length=12, truncation=True)
        assert len(ids) == 2


# One writer, files that belong together


def test_a_folder_has_one_writer(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_source(tmp_path / "passage")
    with sole_writer(root / "preprocess"), pytest.raises(InputError, match="preprocess: another process is writing it"):
        preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    assert snapshot(root / "preprocess") == {}


def other_source(root: Path) -> Path:
    """As many texts and queries as :func:`write_source` has, but others, in another order."""
    write_source(root)
    lines = [f"{pid}\t{TEXTS[pid % 3]}\n" for pid in PIDS[::-1]]
    (root / "dataset" / "collection.tsv").write_text("".join(lines))
    (root / "dataset" / "queries.train.tsv").write_text("2\tthe north sea\n3\twhere is the river\n")
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tokenizer: RobertaTokenizer) -> Path:
    root = other_source(tmp_path_factory.mktemp("other") / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    return root / "preprocess"


def opened(folder: Path) -> set[str]:
    """The token memmaps that can be read."""
    found = set()
    for name in (PASSAGES, "train-query", "lead-query"):
        with suppress(InputError):
            TokenMemmap.open(folder, name, 12)
            found.add(name)
    return found


def test_a_kill_between_two_names_leaves_nothing_that_can_be_read(
    tmp_path: Path, reference: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = len(list(other.iterdir()))
    for killed_after in range(moves + 1):
        target, staged = tmp_path / f"{killed_after}", tmp_path / f"{killed_after}-new"
        shutil.copytree(reference, target)
        shutil.copytree(other, staged)
        left = iter(range(killed_after))

        def replace(source: Path, place: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            source.rename(place)

        monkeypatch.setattr(drhard.preprocessing.os, "replace", replace)
        with suppress(KeyboardInterrupt):
            drhard.preprocessing._publish(staged, target)
        metas = [path for path in target.glob("*_meta")]
        if killed_after < moves - 3:
            assert not metas
            assert not opened(target)
        else:  # all else has its name by then
            assert len(metas) == 3 - (moves - killed_after)
            assert {name: content for name, content in snapshot(target).items() if "_meta" not in name} == {
                name: content for name, content in snapshot(other).items() if "_meta" not in name
            }


def test_modes_of_other_documents_do_not_stay(
    tmp_path: Path, tokenizer: RobertaTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_source(tmp_path / "passage")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    (root / "dataset" / "queries.train.tsv").unlink()
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    assert opened(root / "preprocess") == {PASSAGES, "train-query", "lead-query"}  # the documents are the same
    other_source(tmp_path / "other")
    shutil.copy(tmp_path / "other/dataset/collection.tsv", root / "dataset")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    assert opened(root / "preprocess") == {PASSAGES, "lead-query"}
    assert not list((root / "preprocess").glob("train-*"))
    assert sum("removed; it was made with other documents" in message for message in caplog.messages) == 5


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_source(tmp_path / "passage")
    left = root / "preprocess" / ".partial"
    left.mkdir(parents=True)
    (left / "passages.memmap.partial").write_bytes(b"1" * 10_000)
    (left / "dev-query_meta").write_text("{}")
    preprocess(PASSAGE, root, tokenizer, LENGTHS, workers=1)
    assert snapshot(root / "preprocess") == snapshot(reference)


@pytest.mark.parametrize("limit, name", [(300, "tokenizer"), (50_000, "passages.memmap")])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer, limit: int, name: str
) -> None:
    """The memmap, 104 kB, is written by a worker."""
    lengths = Lengths(doc_tokens=512, query_tokens=6, doc_characters=10)
    root = write_source(tmp_path / "passage")
    shutil.copytree(reference, root / "preprocess")
    with open(root / "dataset" / "collection.tsv", "a") as file:
        file.write("999\tone more\n")
    sentence = rf"{name}: File too large \(the disk mounted at /.* GB free\)"
    with no_larger_files_than(limit), pytest.raises(InputError, match=sentence):
        preprocess(PASSAGE, root, tokenizer, lengths, workers=1)
    assert snapshot(root / "preprocess") == snapshot(reference)
    preprocess(PASSAGE, root, tokenizer, lengths, workers=1)
    assert len(TokenMemmap.open(root / "preprocess", PASSAGES, 12)) == 51


def test_a_duplicate_id_is_found_in_any_format(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    corpus = replace(PASSAGE, collection="collection.csv", parse=parse_csv)
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "collection.csv").write_text("7,one\n8,two\n7,three\n")
    with pytest.raises(InputError, match=r"collection\.csv, line 3: the id 7 is already used in line 1"):
        preprocess(corpus, tmp_path, tokenizer, LENGTHS, workers=1)


# Several processes


def write_lines(root: Path, packed: bool = False) -> Path:
    """A collection of 50 passages, two of them empty, with queries that are judged for them."""
    write_source(root)
    path = root / "dataset" / "collection.tsv"
    lines = path.read_text().splitlines(keepends=True)
    lines[20], lines[33] = f"{PIDS[20]}\t \n", f"{PIDS[33]}\t\n"
    path.write_text("".join(lines))
    if packed:
        path.with_name("collection.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return root


@pytest.fixture
def at_once(tokenizer: RobertaTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without worker processes, which take a second to start."""
    monkeypatch.setattr(drhard.preprocessing, "open_pool", lambda *_: nullcontext(AtOnce(tokenizer)))


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of 3 rows, from parts of a few lines."""
    monkeypatch.setattr(drhard.preprocessing, "BATCH_BYTES", 100)
    monkeypatch.setattr(drhard.preprocessing, "TASK_ROWS", 3)


@pytest.mark.usefixtures("at_once", "small_tasks")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("way", ["keep", "skip", "packed"])
def test_processes_write_the_same_bytes(tmp_path: Path, tokenizer: RobertaTokenizer, count: int, way: str) -> None:
    def work(case: str) -> None:
        preprocess(PASSAGE, tmp_path / case, tokenizer, LENGTHS, 1, "skip" if way == "skip" else "keep")

    for case in ("one", "several"):
        write_lines(tmp_path / case, way == "packed")
    work("one")
    sharing.share(count, lambda: work("several"), tmp_path / "printed", silence=20)
    assert snapshot(tmp_path / "several") == snapshot(tmp_path / "one")
    assert (tmp_path / "printed" / "1.txt").read_text() == ""


@pytest.mark.usefixtures("small_tasks")
def test_processes_have_workers(tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_source(tmp_path / "passage")
    sharing.share(2, lambda: preprocess(PASSAGE, root, tokenizer, LENGTHS, 2), tmp_path / "printed", silence=20)
    assert snapshot(root / "preprocess") == snapshot(reference)


@pytest.mark.usefixtures("at_once", "small_tasks")
def test_bad_lines_are_found_by_any_process(tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer) -> None:
    root = write_source(tmp_path / "passage")
    shutil.copytree(reference, root / "preprocess")
    path = root / "dataset" / "collection.tsv"
    whole = path.read_bytes().splitlines(keepends=True)

    def work() -> None:
        preprocess(PASSAGE, root, tokenizer, LENGTHS, 1)

    for line, complaint in (
        (b"no tab\n", "line 41: expected 'pid <tab> passage', found 1 field"),
        (b"7\t\xff\n", "line 41: not UTF-8 text (byte 2 of the line)"),
        (b"7\t \n", "line 41: the text is empty; give --empty_texts"),
        (whole[11], f"line 41: the id {PIDS[11]} is already used in line 12"),
    ):
        path.write_bytes(b"".join([*whole[:40], line, *whole[41:]]))
        log = tmp_path / f"{line[:4]!r}"
        assert sharing.wait_for(sharing.start_processes(3, work, log, silence=20)) == [2, 2, 2]
        printed = "".join((log / f"{rank}.txt").read_text() for rank in range(3))
        assert f"error: {path}, {complaint}" in the_error(printed)
        assert snapshot(root / "preprocess") == snapshot(reference)


@pytest.mark.usefixtures("at_once", "small_tasks")
@pytest.mark.parametrize("dead", [0, 1])
def test_preprocessing_is_run_again_after_a_kill(
    tmp_path: Path, reference: Path, tokenizer: RobertaTokenizer, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_source(tmp_path / "passage")

    def work() -> None:
        preprocess(PASSAGE, root, tokenizer, LENGTHS, 1)

    def die() -> None:
        def tokenize(batch: Batch) -> Rows:
            if processes.rank() == dead:
                os.kill(os.getpid(), signal.SIGKILL)
            return drhard.workers.tokenize(batch)

        monkeypatch.setattr(drhard.preprocessing, "tokenize", tokenize)
        work()

    codes = sharing.wait_for(sharing.start_processes(2, die, tmp_path / "killed", silence=2))
    assert sorted(codes) == [-signal.SIGKILL, 2]
    printed = (tmp_path / "killed" / f"{1 - dead}.txt").read_text()
    assert the_error(printed) == f"error: {processes.LEFT_ALONE}"
    assert (root / "preprocess" / ".partial").exists() == (dead == 0)
    sharing.share(3, work, tmp_path / "printed", silence=20)
    assert snapshot(root / "preprocess") == snapshot(reference)


def test_processes_must_have_the_same_texts_and_folder(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    for host in "01":
        write_source(tmp_path / host)
    (tmp_path / "1" / "dataset" / "qrels.train.tsv").write_text(f"3\t0\t{PIDS[4]}\t1\n")

    def other_texts() -> None:
        preprocess(PASSAGE, tmp_path / str(processes.rank()), tokenizer, LENGTHS, 1, target=tmp_path / "shared")

    def other_flags() -> None:
        lengths = replace(LENGTHS, query_tokens=5 + processes.rank())
        preprocess(PASSAGE, tmp_path / "0", tokenizer, lengths, 1, target=tmp_path / "shared")

    def other_folder() -> None:
        preprocess(PASSAGE, tmp_path / "0", tokenizer, LENGTHS, 1, target=tmp_path / f"host{processes.rank()}")

    differ = "error: the processes of this run have different texts, tokenizers or flags"
    for work, expected in (
        (other_texts, differ),
        (other_flags, differ),
        (other_folder, f"error: {tmp_path / 'host'}"),
    ):
        log = tmp_path / work.__name__
        assert sharing.wait_for(sharing.start_processes(2, work, log, silence=20)) == [2, 2]
        assert the_error("".join(path.read_text() for path in sorted(log.iterdir()))).startswith(expected)
    assert not (tmp_path / "shared").exists() or not list((tmp_path / "shared").iterdir())


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for count, threads in ((1, 16), (3, 5), (40, 1)):
        monkeypatch.setattr(processes, "_run", processes._Run(0, 2 * count, on_machine=count))
        assert parse_flags("preprocess.py").threads == threads
