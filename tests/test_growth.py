"""Passages that are appended: the same files as if all had been there at once, whenever a process is killed."""

import gzip
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import drhard.embeddings
import drhard.growth
import drhard.preprocessing
import drhard.windows
import drhard.workers
from drhard.dataset import find_corpus, read_import
from drhard.embeddings import encode, open_embeddings
from drhard.errors import InputError
from drhard.files import claim_partial, sole_writer
from drhard.growth import GROWTH_FILE, finish_growth, grow_files, prepare_growth, prepared_in
from drhard.importing import Imported, append_passages, import_collection
from drhard.msmarco import PASSAGE
from drhard.preprocessing import Lengths, preprocess
from drhard.roberta_dot import RobertaDot
from drhard.sources import FieldNames, Source, read_beir, read_files, read_ir_datasets
from drhard.tokenizer import RobertaTokenizer
from drhard.tokens import PASSAGES, TokenMemmap

import pytest
import sharing
import torch
from formats import register, write_beir, write_jsonl
from helpers import TEXTS, AtOnce, no_larger_files_than, open_tokens, random_sequences, snapshot, tiny_model, vocabulary

FILES = {  # of passages: id and text
    "a": [("007", "the river rhine"), ("MED-10", "a star is a ball"), ("Ü-ñ", "")],
    "b": [("d0", ""), ("日本", "where the river ends"), ("0", "a text of the alps")],
    "c": [*((f"c{number}", f"{TEXTS[number % 4]} {number}") for number in range(30)), ("last", "")],
}
QUERIES = [("q1", "where is the river rhine"), ("ñ", "what is a star"), ("none", "not judged")]
JUDGED = {  # more than half of the first name passages of the first file
    "test": [
        ("q1", "007", 2),
        ("q1", "c7", 1),
        ("ñ", "MED-10", 1),
        ("ñ", "日本", 3),
        ("q1", "Ü-ñ", 1),
        ("ñ", "007", 0),
    ],
    "train": [("ñ", "007", 1), ("q1", "MED-10", 1)],
    "again": [("ñ", "007", 1)],
    "new": [("q1", "c1", 1), ("q1", "MED-10", 2), ("ñ", "none", 1)],
}
FIELDS = FieldNames()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The sources."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, rows in FILES.items():
        write_jsonl(folder / f"{name}.jsonl", [{"_id": id_, "title": "", "text": text} for id_, text in rows])
    (folder / "queries.tsv").write_text("".join(f"{id_}\t{text}\n" for id_, text in QUERIES), encoding="utf-8")
    for split, judged in JUDGED.items():
        lines = [f"{qid} 0 {docid} {grade}\n" for qid, docid, grade in judged]
        (folder / f"{split}.qrels").write_text("".join(lines), encoding="utf-8")
    return folder


def source(files: Path, names: str, splits: tuple[str, ...] = (), fields: FieldNames = FIELDS) -> Source:
    corpus = [files / f"{name}.jsonl" for name in names]
    queries = dict.fromkeys(splits, [files / "queries.tsv"])
    return read_files(corpus, queries, {split: files / f"{split}.qrels" for split in splits}, fields)


def append(files: Path, folder: Path, names: str, splits: tuple[str, ...] = (), empty_texts: str = "keep") -> Imported:
    return append_passages(source(files, names, splits), folder, empty_texts)


def imported(files: Path, folder: Path, names: str, splits: tuple[str, ...], empty_texts: str = "keep") -> Path:
    import_collection(source(files, names, splits), folder, empty_texts)
    return folder


# Kills


def steps_of(action: Callable[[], object], folder: Path) -> Iterator[int]:
    """Kill ``action`` before each of its changes to the files under ``folder``, once before each. Yield the number.

    The folder must be as before when the caller asks for the next.
    """
    for step in range(1, 1000):
        pid = os.fork()
        if pid == 0:
            _die_at(step, folder)
            try:
                action()
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return
        yield step


def _die_at(step: int, folder: Path) -> None:
    left = step

    def heed(event: str, arguments: tuple) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (writes or event in ("os.rename", "os.remove", "os.truncate", "os.rmdir", "os.mkdir")):
            return
        if str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heed)


@pytest.fixture
def half_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed in the middle of each copy too."""

    def copy(source: BinaryIO, target: BinaryIO, _: int) -> None:
        content = source.read()
        target.write(content[: len(content) // 2])
        target.flush()
        sys.audit("os.truncate", target.name)
        target.write(content[len(content) // 2 :])

    monkeypatch.setattr(drhard.growth.shutil, "copyfileobj", copy)


def restore(kept: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def without_unfinished(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if ".partial" not in name and name != ".lock"}


# Files


def write_growth(folder: Path) -> None:
    """Half of a growth: the caller gives it its place."""
    (folder / "rows").write_text("old")
    (folder / "size").write_text("3")
    with prepare_growth(prepared_in(folder)) as prepared:
        (prepared / "rows").write_text("er")
        (prepared / "size").write_text("5")
        (prepared / "another").write_text("x")
        grow_files(prepared, {"rows": 3}, "size")


def test_files_grow(tmp_path: Path) -> None:
    write_growth(tmp_path)
    assert snapshot(tmp_path) == {"rows": b"older", "size": b"5", "another": b"x"}
    assert not prepared_in(tmp_path).exists()


@pytest.mark.usefixtures("half_copied")
def test_a_killed_growth_is_finished_or_undone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    states = set()
    for _ in steps_of(lambda: write_growth(folder), folder):
        found = snapshot(folder)
        whole = (found.get("rows"), found.get("size")) in ((b"old", b"3"), (b"older", b"5"))
        with prepare_growth(prepared_in(folder)):
            pass
        after = snapshot(folder)
        states.add((whole, after.get("size")))
        if after.get("size") == b"5":
            assert after == {"rows": b"older", "size": b"5", "another": b"x"}
        shutil.rmtree(folder)
        folder.mkdir()
    assert (False, b"5") in states and (True, b"3") in states


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    prepared.mkdir()
    (tmp_path / "rows").write_text("ol")
    (prepared / "rows").write_text("er")
    (prepared / "size").write_text("5")
    with pytest.raises(InputError, match="rows: is shorter than the 3 bytes that it had"):
        grow_files(prepared, {"rows": 3}, "size")


# Importing


@pytest.mark.parametrize("empty_texts", ["keep", "skip"])
def test_appended_passages_are_as_if_imported_at_once(files: Path, tmp_path: Path, empty_texts: str) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("test", "train"), empty_texts)
    assert (folder / "qrels.test.tsv").read_text().count("\n") == (4 if empty_texts == "keep" else 3)
    assert append(files, folder, "b", (), empty_texts).new
    once = imported(files, tmp_path / "two", "ab", ("test", "train"), empty_texts)
    assert snapshot(folder) == snapshot(once)
    assert append(files, folder, "c", ("new",), empty_texts).new
    once = imported(files, tmp_path / "three", "abc", ("test", "train", "new"), empty_texts)
    assert snapshot(folder) == snapshot(once)
    content = read_import(folder)
    assert content is not None and content["splits"]["test"]["left_out"] == (0 if empty_texts == "keep" else 1)
    assert not import_collection(source(files, "abc", ("test", "train", "new")), folder, empty_texts).new


def test_the_same_again_does_nothing(files: Path, tmp_path: Path) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("train",))
    append(files, folder, "b")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for names, splits in (("b", ()), ("ab", ("train",)), ("a", ())):
        assert not append(files, folder, names, splits).new
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_of_several_files_the_new_ones_are_appended(files: Path, tmp_path: Path) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("train",))
    append(files, folder, "abc")
    append(files, folder, "b", ("test",))  # nothing but a new split
    assert snapshot(folder) == snapshot(imported(files, tmp_path / "once", "abc", ("train", "test")))


def test_a_beir_folder_is_appended(files: Path, tmp_path: Path) -> None:
    """It brings a split; the split of the first folder is unchanged."""
    first = write_beir(
        tmp_path / "first", [(id_, "", text) for id_, text in FILES["a"]], QUERIES, {"train": JUDGED["train"]}
    )
    second = write_beir(
        tmp_path / "second", [(id_, "", text) for id_, text in FILES["c"]], QUERIES, {"new": JUDGED["new"]}
    )
    import_collection(read_beir(first, FIELDS), tmp_path / "grown", "keep")
    append_passages(read_beir(second, FIELDS), tmp_path / "grown", "keep")
    corpus, qrels = [folder / "corpus.jsonl" for folder in (first, second)], ("train", "new")
    queries = {"train": [first / "queries.jsonl"], "new": [second / "queries.jsonl"]}
    judged = {split: folder / "qrels" / f"{split}.tsv" for split, folder in zip(qrels, (first, second), strict=True)}
    import_collection(read_files(corpus, queries, judged, FIELDS), tmp_path / "once", "keep")
    assert snapshot(tmp_path / "grown") == snapshot(tmp_path / "once")


def test_what_cannot_be_appended(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("train",))
    before = snapshot(folder)
    (files / "twice.jsonl").write_text('{"_id": "new", "text": "x"}\n{"_id": "Ü-ñ", "text": "y"}\n', encoding="utf-8")
    (files / "within.jsonl").write_text('{"_id": "n", "text": "x"}\n{"_id": "n", "text": "y"}\n')
    (files / "empty.jsonl").write_text("")
    register(tmp_path, "more", [("z", "", "text")], QUERIES, {"test": [("q1", "z", 1)]}, monkeypatch)
    for given, complaint in (
        ((source(files, "b"), "skip"), "was imported with --empty_texts keep; give it again"),
        (
            (source(files, "b", (), FieldNames(text="text")), "keep"),
            "was imported with the usual names of fields; give",
        ),
        ((read_ir_datasets(["more/test"], FIELDS), "keep"), "only files can be appended, and only to a collection"),
        (
            (read_files([files / "twice.jsonl"], {}, {}, FIELDS), "keep"),
            r"twice.jsonl, line 2: the id 'Ü-ñ' is already used in row 2 of .*collection\.tsv",
        ),
        (
            (read_files([files / "within.jsonl"], {}, {}, FIELDS), "keep"),
            "line 2: the id 'n' is already used in .*line 1",
        ),
        ((read_files([files / "empty.jsonl"], {}, {}, FIELDS), "keep"), "empty.jsonl: holds no text"),
        (
            (read_files([files / "b.jsonl"], {"train": [files / "queries.tsv"]}, {}, FIELDS), "keep"),
            "has a split train made from other files; give the new one another name",
        ),
    ):
        with pytest.raises(InputError, match=complaint):
            append_passages(given[0], folder, given[1])
        assert snapshot(folder) == before
    with pytest.raises(InputError, match="none: has no imported collection; import one first, without --append"):
        append(files, tmp_path / "none", "a")
    import_collection(read_ir_datasets(["more/test"], FIELDS), tmp_path / "ir", "keep")
    with pytest.raises(InputError, match="only files can be appended"):
        append(files, tmp_path / "ir", "a")


def test_two_processes_append(files: Path, tmp_path: Path) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("train",))
    with sole_writer(folder), pytest.raises(InputError, match="another process is writing it; wait for it"):
        append(files, folder, "b")
    append(files, folder, "b")


@pytest.mark.usefixtures("half_copied")
def test_a_killed_append_is_readable_or_mended(files: Path, tmp_path: Path) -> None:
    """Readers have all of the old or all of the new; where they have neither, the next call mends it."""
    folder, kept = imported(files, tmp_path / "grown", "a", ("test",)), tmp_path / "kept"
    shutil.copytree(folder, kept)
    old = snapshot(folder)
    new = snapshot(imported(files, tmp_path / "once", "ab", ("test", "train")))
    refusals = 0
    for step in steps_of(lambda: append(files, folder, "b", ("train",)), folder):
        found = without_unfinished(snapshot(folder))
        try:
            content = read_import(folder)
        except InputError as error:
            assert "run import_collection.py --append again" in str(error)
            refusals += 1
        else:
            assert content is not None
            expected = old if json.loads(old["import.json"]) == content else new
            assert all(found[name] == data for name, data in expected.items())
        if step % 2:  # an import without --append mends it too
            again = source(files, "ab", ("test", "train"))
            if (prepared_in(folder) / GROWTH_FILE).exists():
                assert not import_collection(again, folder, "keep").new
        append(files, folder, "b", ("train",))
        assert snapshot(folder) == new
        restore(kept, folder)
    assert refusals > 3


@pytest.mark.usefixtures("capsys")  # so that standard error is no file
def test_a_full_disk(files: Path, tmp_path: Path) -> None:
    """While the new part is written nothing changes; after that, the next call goes on."""
    folder = imported(files, tmp_path / "grown", "abc", ("test",))
    write_jsonl(files / "d.jsonl", [{"_id": "d", "text": "the end"}])
    before = snapshot(folder)
    for limit in (4, (folder / "collection.tsv").stat().st_size + 4):
        with no_larger_files_than(limit), pytest.raises(InputError, match="File too large .the disk"):
            append(files, folder, "d")
        assert limit > 4 or snapshot(folder) == before
    with pytest.raises(InputError, match="passages are being appended, or that was interrupted"):
        find_corpus(PASSAGE, folder)
    append(files, folder, "d")
    assert snapshot(folder) == snapshot(imported(files, tmp_path / "once", "abcd", ("test",)))


def test_a_collection_of_another_size_is_refused(files: Path, tmp_path: Path) -> None:
    folder = imported(files, tmp_path / "grown", "a", ("train",))
    with open(folder / "collection.tsv", "a") as file:
        file.write("3\tmore\n")
    with pytest.raises(
        InputError, match=r"collection\.tsv: has \d+ bytes, but import.json says \d+; delete the folder"
    ):
        append(files, folder, "b")


def test_ids_that_are_damaged_are_refused(files: Path, tmp_path: Path) -> None:
    folder = imported(files, tmp_path / "grown", "bc", ())
    ids = folder / "collection.ids"
    whole = ids.read_bytes()
    for content, complaint in (
        (whole.replace(b"d0", b"c1"), r"collection\.ids: is damaged, it has the id 'c1' twice"),
        (whole.replace(b"d0", b"d\xff"), r"collection\.ids: is damaged at row 0"),
        (whole + b"more\n", r"collection\.ids\.npy: has the places of other ids"),
    ):
        ids.write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            append(files, folder, "a")


def test_finishing_nothing(tmp_path: Path) -> None:
    finish_growth(prepared_in(tmp_path))
    assert not list(tmp_path.iterdir())


# Preprocessing

LENGTHS = Lengths(doc_tokens=12, query_tokens=6, doc_characters=40)


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    vocab, merges = vocabulary()
    return RobertaTokenizer(vocab, list(merges), do_lower_case=True)


def preprocessed(folder: Path, tokenizer: RobertaTokenizer, lengths: Lengths = LENGTHS, **options: str) -> Path:
    """The ``preprocess`` folder of a collection, made by an earlier call or by this one."""
    root = folder.parent
    preprocess(find_corpus(PASSAGE, folder), root, tokenizer, lengths, 1, **options)
    return root / "preprocess"


@pytest.fixture
def appended_to(files: Path, tmp_path: Path, tokenizer: RobertaTokenizer) -> Path:
    """The dataset folder of a collection that was preprocessed before its second file was appended."""
    folder = imported(files, tmp_path / "grown" / "dataset", "a", ("test", "train"))
    preprocessed(folder, tokenizer)
    append(files, folder, "b")
    return folder


@pytest.fixture
def at_once(files: Path, tmp_path: Path, tokenizer: RobertaTokenizer) -> Path:
    """The ``preprocess`` folder of the same passages, imported at once."""
    return preprocessed(imported(files, tmp_path / "once" / "dataset", "ab", ("test", "train")), tokenizer)


@pytest.mark.parametrize("first", ["keep", "skip"])
@pytest.mark.parametrize("then", ["keep", "skip"])
def test_only_new_passages_are_tokenized(
    files: Path, tmp_path: Path, tokenizer: RobertaTokenizer, first: str, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With empty texts among the earlier and the new passages."""
    caplog.set_level("INFO")
    folder = imported(files, tmp_path / "grown" / "dataset", "a", ("test", "train"), first)
    preprocessed(folder, tokenizer, empty_texts=then)
    for names in ("b", "c"):
        append(files, folder, names, ("new",) if names == "c" else (), first)
        preprocessed(folder, tokenizer, empty_texts=then)
    once = imported(files, tmp_path / "once" / "dataset", "abc", ("test", "train", "new"), first)
    assert snapshot(folder.parent) == snapshot(preprocessed(once, tokenizer, empty_texts=then).parent)
    told = [message.partition("preprocess: ")[2] for message in caplog.messages if "appended" in message]
    assert told == (
        ["appended 3 passages to 3", "appended 31 passages to 6"]
        if (first, then) == ("keep", "keep")
        else ["appended 2 passages to 2", "appended 30 passages to 4"]
    )


def test_small_batches_and_nothing_new(
    appended_to: Path, at_once: Path, tokenizer: RobertaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drhard.preprocessing, "BATCH_BYTES", 20)
    for _ in range(2):
        assert snapshot(preprocessed(appended_to, tokenizer)) == snapshot(at_once)


def test_a_new_split_alone_tokenizes_no_passage(
    files: Path, appended_to: Path, tmp_path: Path, tokenizer: RobertaTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    preprocessed(appended_to, tokenizer)
    append(files, appended_to, "", ("again",))
    folder = preprocessed(appended_to, tokenizer)
    assert "appended 0 passages to 6" in caplog.text
    once = imported(files, tmp_path / "once" / "dataset", "ab", ("test", "train", "again"))
    assert snapshot(folder) == snapshot(preprocessed(once, tokenizer))


@pytest.mark.parametrize(
    ("change", "reason"),
    {
        "length": "they have another --max_seq_length",
        "characters": "they have another --max_doc_character",
        "empty_texts": "they have another --empty_texts",
        "tokenizer": "another tokenizer made them",
        "prompt": "they have another prompt",
        "collection": "they are of another collection",
        "split": "there is no split gone any more",
        "cut": r"they are damaged .*passages.memmap: has",
        "ids": r"they are damaged .*passages.ids.npy: has the places of other ids",
    }.items(),
)
def test_what_is_made_again(
    files: Path, appended_to: Path, tmp_path: Path, change: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the files are those of a first run."""
    caplog.set_level("INFO")
    vocab, merges = vocabulary()
    tokenizer = RobertaTokenizer(vocab, list(merges), do_lower_case=change != "tokenizer")
    lengths, options, target = LENGTHS, {}, appended_to.parent / "preprocess"
    if change == "length":
        lengths = Lengths(11, 6, 40)
    elif change == "characters":
        lengths = Lengths(12, 6, 39)
    elif change == "empty_texts":
        options = {"empty_texts": "skip"}
    elif change == "prompt":
        tokenizer.prompts = {"query": "", "passage": "text: "}
    elif change == "collection":
        shutil.rmtree(appended_to)
        imported(files, appended_to, "ba", ("test", "train"))
    elif change == "split":
        for path in target.glob("train-*"):
            shutil.copy(path, path.with_name(path.name.replace("train", "gone")))
    else:
        path = target / ("passages.memmap" if change == "cut" else "passages.ids")
        path.write_bytes(path.read_bytes()[:-2])
    folder = preprocessed(appended_to, tokenizer, lengths, **options)
    assert re.search(f"makes all tokens again: {reason}", caplog.text)
    shutil.copytree(appended_to, tmp_path / "first" / "dataset")
    assert snapshot(folder) == snapshot(preprocessed(tmp_path / "first" / "dataset", tokenizer, lengths, **options))


def test_a_packed_collection_is_made_again(
    appended_to: Path, tokenizer: RobertaTokenizer, at_once: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = appended_to / "collection.tsv"
    path.with_name("collection.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert snapshot(preprocessed(appended_to, tokenizer)) == snapshot(at_once)


def test_passages_that_are_appended_meanwhile_are_not_read(
    files: Path, appended_to: Path, at_once: Path, tokenizer: RobertaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """preprocess.py goes by what import.json says when it starts."""
    find = drhard.preprocessing._find_sources
    monkeypatch.setattr(
        drhard.preprocessing, "_find_sources", lambda *given: append(files, appended_to, "c") and find(*given)
    )
    corpus = replace(find_corpus(PASSAGE, appended_to), modes={})
    preprocess(corpus, appended_to.parent, tokenizer, LENGTHS, 1)
    folder = appended_to.parent / "preprocess"
    assert (folder / "passages.memmap").read_bytes() == (at_once / "passages.memmap").read_bytes()
    assert (folder / "passages_meta").read_bytes() == (at_once / "passages_meta").read_bytes()


def test_processes_append_the_same_bytes(
    appended_to: Path, at_once: Path, tmp_path: Path, tokenizer: RobertaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drhard.preprocessing, "TASK_ROWS", 1)
    monkeypatch.setattr(drhard.preprocessing, "open_pool", lambda *_: nullcontext(AtOnce(tokenizer)))
    sharing.share(2, lambda: preprocessed(appended_to, tokenizer), tmp_path / "printed")
    assert snapshot(appended_to.parent / "preprocess") == snapshot(at_once)


@pytest.mark.usefixtures("half_copied")
def test_killed_preprocessing_is_readable_or_mended(
    appended_to: Path, at_once: Path, tmp_path: Path, tokenizer: RobertaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memmaps are read in full or refused."""
    monkeypatch.setattr(drhard.preprocessing, "open_pool", lambda *_: nullcontext(AtOnce(tokenizer)))
    folder, kept = appended_to.parent / "preprocess", tmp_path / "kept"
    shutil.copytree(folder, kept)
    old, new = snapshot(folder), snapshot(at_once)
    refusals = 0
    for _ in steps_of(lambda: preprocessed(appended_to, tokenizer), folder):
        found = without_unfinished(snapshot(folder))
        try:
            assert len(TokenMemmap.open(folder, PASSAGES)) in (3, 6)
        except InputError as error:
            assert "run preprocess.py again" in str(error)
            refusals += 1
        else:
            expected = old if found["passages_meta"] == old["passages_meta"] else new
            assert all(found[name] == data for name, data in expected.items())
        assert snapshot(preprocessed(appended_to, tokenizer)) == new
        restore(kept, folder)
    assert refusals > 10


# Encoding

CPU = torch.device("cpu")
WIDTH = 12


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.embeddings, "WINDOW", 5)


@pytest.fixture
def encoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first row of each encoding."""
    rows: list[int] = []
    embed = drhard.embeddings._embed

    def noted(encoding: object, starts: list[int], own: Iterator[int]) -> object:
        rows.append(starts[0])
        return embed(encoding, starts, own)

    monkeypatch.setattr(drhard.embeddings, "_embed", noted)
    return rows


def tokens_of(folder: Path, rows: int, length: int = WIDTH) -> TokenMemmap:
    return open_tokens(folder / f"tokens{rows}", random_sequences(40, WIDTH, seed=0)[:rows], WIDTH, length)


def encoded(folder: Path, rows: int, model: RobertaDot | None = None, length: int = WIDTH) -> dict[str, bytes]:
    tokens = tokens_of(folder.parent, rows, length)
    encode(model or tiny_model(), tokens, folder / "passages.memmap", 4, CPU)
    return snapshot(folder)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("counts", [(7, 23), (10, 23), (3, 4), (5, 10), (2, 7, 12, 21, 40)])
def test_only_new_rows_are_encoded(tmp_path: Path, counts: tuple[int, ...], encoded_rows: list[int]) -> None:
    """From the last window on that was full."""
    for count in counts:
        found = encoded(tmp_path / "grown", count)
        assert found == encoded(tmp_path / f"once{count}", count)
    assert encoded_rows[2::2] == [count // 5 * 5 for count in counts[:-1]]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("change", ["model", "length", "texts", "precision", "cut"])
def test_embeddings_that_cannot_grow(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "grown"
    encoded(folder, 12)
    model, length = tiny_model(seed=change == "model"), WIDTH - (change == "length")
    stamp = folder / "passages.memmap.json"
    if change == "texts":
        stamp.write_text(stamp.read_text().replace('"tokens": "', '"tokens": "0'))
    elif change == "precision":
        stamp.write_text(stamp.read_text().replace("float32", "bfloat16").replace("bfloat16", "float32", 1))
    elif change == "cut":
        with open(folder / "passages.memmap", "ab") as file:
            file.write(b"1")
    before = snapshot(folder)
    with pytest.raises(InputError, match=r"passages\.memmap: "):
        encoded(folder, 23, model, length)
    assert snapshot(folder) == before


@pytest.mark.usefixtures("small_windows", "half_copied")
def test_killed_encoding_is_readable_or_mended(tmp_path: Path) -> None:
    """The earlier embeddings can be used until the new ones are whole."""
    folder, kept = tmp_path / "grown", tmp_path / "kept"
    old, new = encoded(folder, 12), encoded(tmp_path / "once", 23)
    shutil.copytree(folder, kept)
    dim, refused, reused = tiny_model().output_embedding_size, 0, 0
    for _ in steps_of(lambda: encoded(folder, 23), folder):
        try:
            count = len(open_embeddings(folder / "passages.memmap", dim))
        except InputError as error:
            assert "embeddings are being appended to it, or that was interrupted" in str(error)
            refused += 1
        else:
            found, whole = snapshot(folder), {12: old, 23: new}[count]
            assert all(found[name] == data for name, data in whole.items())
        reused += (folder / "passages.memmap.growing" / "passages.memmap").exists()
        assert encoded(folder, 23) == new
        restore(kept, folder)
    assert refused > 2 and reused > 2


@pytest.mark.usefixtures("small_windows")
def test_a_stopped_encoding_goes_on(tmp_path: Path, encoded_rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last full window; unless the tokens are others by then."""
    folder = tmp_path / "grown"
    old, new = encoded(folder, 12), encoded(tmp_path / "once", 33)
    write_at = drhard.windows.write_at

    def stop_in_third(descriptor: int, data: memoryview, place: int) -> None:
        write_at(descriptor, data, place)
        if (len(data), place) == (1, 2):  # its mark
            raise KeyboardInterrupt

    for rows in (33, 31):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(drhard.windows, "write_at", stop_in_third)
            encoded(folder, rows)
        assert {name: data for name, data in snapshot(folder).items() if "growing" not in name} == old
        encoded_rows.clear()
        assert encoded(folder, 33) == new
        assert encoded_rows == [25 if rows == 33 else 10]
        restore(tmp_path / "once", folder)
        encoded(tmp_path / "first", 12)
        restore(tmp_path / "first", folder)


@pytest.mark.usefixtures("small_windows")
def test_a_growth_that_was_decided_is_finished_for_other_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages were appended twice, and inference was killed in between."""
    folder = tmp_path / "grown"
    encoded(folder, 12)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drhard.growth, "_write_end", killed)
        encoded(folder, 23)
    assert encoded(folder, 33) == encoded(tmp_path / "once", 33)


@pytest.mark.usefixtures("small_windows")
def test_embeddings_that_are_not_finite_leave_the_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    old = encoded(folder, 12)
    model = tiny_model()
    model.forward = lambda ids, mask: torch.full((len(ids), 16), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="the model gives embeddings that are not finite"):
        encoded(folder, 23, model)
    assert snapshot(folder) == old


def test_two_processes_encode(tmp_path: Path) -> None:
    encoded(tmp_path / "grown", 12)
    with claim_partial(tmp_path / "grown" / "passages.memmap"), pytest.raises(InputError, match="another process is"):
        encoded(tmp_path / "grown", 23)
    assert encoded(tmp_path / "grown", 23) == encoded(tmp_path / "once", 23)
