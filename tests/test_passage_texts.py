"""The texts of passages by their rows, against the lines of the collection."""

import gzip
import json
from pathlib import Path

from drhard import passage_texts
from drhard.errors import InputError
from drhard.files import claim_partial
from drhard.msmarco import DOC, PASSAGE, Corpus
from drhard.passage_texts import COPY_FILE, OFFSETS_FILE, PassageTexts, open_passage_texts

import numpy as np
import pytest

# A byte-order mark, an empty text that preprocess.py skipped, letters of several bytes, a line that ends as in Windows,
# and no end of the last line.
LINES = "\ufeff30\tThe first.\n7\t \n12\tÉtoile 日本語 🎬\r\n5\t a blank in front\n0\tthe last"
PIDS = (30, 12, 5, 0)
EXPECTED = ["The first.", "Étoile 日本語 🎬", " a blank in front", "the last"]


def write_source(root: Path, lines: str = LINES, corpus: Corpus = PASSAGE, zipped: bool = False) -> Path:
    """Write the file of a collection into the dataset folder."""
    path = root / "dataset" / (f"{corpus.collection}.gz" if zipped else corpus.collection)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if zipped else lines.encode())
    return path


def opened(root: Path, pids: tuple[int, ...] = PIDS, corpus: Corpus = PASSAGE) -> PassageTexts:
    folder = root / "preprocess"
    folder.mkdir(exist_ok=True)
    texts = open_passage_texts(corpus, root / "dataset", folder, np.array(pids))
    assert texts is not None
    return texts


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_each_row_gets_its_text(tmp_path: Path, zipped: bool) -> None:
    write_source(tmp_path, zipped=zipped)
    for _ in range(2):  # found, then read again
        texts = opened(tmp_path)
        assert texts.read([3, 0, 2, 1, 0]) == [EXPECTED[row] for row in (3, 0, 2, 1, 0)]
        assert texts.read([]) == []
    assert (tmp_path / "preprocess" / COPY_FILE).exists() == zipped
    assert not list((tmp_path / "preprocess").glob("*.partial*"))


def test_parts_of_a_document_are_lines(tmp_path: Path) -> None:
    write_source(tmp_path, "D4\thttp://a\tA title\tThe body\nD2\thttp://b\t\tAnother\n", DOC)
    assert opened(tmp_path, (4, 2), DOC).read([1, 0]) == ["http://b\n\nAnother", "http://a\nA title\nThe body"]


def test_offsets_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path, zipped=True)
    opened(tmp_path)
    monkeypatch.setattr(passage_texts, "read_passages", None)
    assert opened(tmp_path).read(range(4)) == EXPECTED


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_they_are_found_again_for_other_texts(tmp_path: Path, zipped: bool) -> None:
    write_source(tmp_path, zipped=zipped)
    opened(tmp_path)
    write_source(tmp_path, "1\tquite another text\n2\tand one more\n", zipped=zipped)
    assert opened(tmp_path, (1, 2)).read([1, 0]) == ["and one more", "quite another text"]


@pytest.mark.parametrize("name", [OFFSETS_FILE, f"{OFFSETS_FILE}.json", COPY_FILE])
def test_they_are_found_again_if_a_file_is_lost(tmp_path: Path, name: str) -> None:
    write_source(tmp_path, zipped=True)
    opened(tmp_path)
    (tmp_path / "preprocess" / name).unlink()
    assert opened(tmp_path).read(range(4)) == EXPECTED


def test_a_killed_run_leaves_no_offsets_that_look_whole(tmp_path: Path) -> None:
    write_source(tmp_path, zipped=True)
    opened(tmp_path)
    write_source(tmp_path, LINES.replace("last", "end"), zipped=True)
    stamp = tmp_path / "preprocess" / f"{OFFSETS_FILE}.json"
    content = json.loads(stamp.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passage_texts, "write_stamp", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path)
    assert not stamp.exists()  # the old one would fit again if the old source came back
    assert opened(tmp_path).read([3]) == ["the end"]
    assert json.loads(stamp.read_text()) != content


@pytest.mark.parametrize(
    "lines, complaint",
    [
        ("30\tThe first.\n13\tanother\n", r"line 2: is not the passage preprocessed as row 1; run preprocess"),
        ("30\tThe first.\n", r"has 1 passages, 4 were preprocessed"),
        ("30\tThe first.\n12\n", r"line 2: expected 'pid <tab> passage', found 1 field"),
    ],
)
def test_texts_that_were_not_preprocessed_are_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    write_source(tmp_path, lines)
    with pytest.raises(InputError, match=complaint):
        opened(tmp_path)
    assert not list((tmp_path / "preprocess").iterdir())


@pytest.mark.parametrize("change", [("Étoile", "Etoile "), ("12\t", "21\t")], ids=["moved", "another id"])
def test_a_file_that_was_changed_is_found_out(tmp_path: Path, change: tuple[str, str]) -> None:
    path = write_source(tmp_path)
    texts = opened(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace(*change).replace("12\tEtoile", "012\tE"), encoding="utf-8")
    with pytest.raises(InputError, match=rf"row 1: does not begin where {OFFSETS_FILE} says; delete {OFFSETS_FILE}"):
        texts.read([1])


def test_offsets_that_are_no_offsets_are_refused(tmp_path: Path) -> None:
    write_source(tmp_path)
    opened(tmp_path)
    np.save(tmp_path / "preprocess" / OFFSETS_FILE, np.zeros(4, np.float32))
    with pytest.raises(InputError, match="is not 4 int64 offsets; delete it and run the same command again"):
        opened(tmp_path)


def test_one_process_at_a_time_finds_them(tmp_path: Path) -> None:
    write_source(tmp_path)
    with claim_partial(tmp_path / "preprocess" / OFFSETS_FILE), pytest.raises(InputError, match="another process"):
        opened(tmp_path)


def test_without_texts_there_is_nothing_to_open(tmp_path: Path) -> None:
    assert open_passage_texts(PASSAGE, tmp_path / "nowhere", tmp_path, np.array(PIDS)) is None
