"""BM25 against sums written out, the texts that it reads, and the negatives that it mines."""

import json
import math
import pickle
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from drhard.bm25 import Bm25Index
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.ids import write_ids
from drhard.mining import Mined, mine_bm25_negatives
from drhard.msmarco import CORPORA, Bm25Parameters
from drhard.negatives import HardNegatives, Selection
from drhard.numbers import Ranks
from drhard.qrels import read_relevant
from drhard.runs import read_run
from drhard.texts import read_passage_texts, read_query_texts
from drhard.tokens import PASSAGES
from drhard.words import split, stem

import numpy as np
import pytest
from helpers import must_run, random_sequences, refused, run_without, write_tokens

LUCENES = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = set(LUCENES.split())
TEXT = "river rivers rhine star stars starry planet planets walking walked sea north encoder vector 1968 über"
WORDS = TEXT.split()


@cache
def words(text: str) -> list[str]:
    """Words (test_words.py has them) without stop words, stemmed."""
    return [stem(word) for word in split(text) if word not in STOP_WORDS]


def plain_bm25(documents: Sequence[str], query: str, k1: float, b: float) -> list[float]:
    """Lucene's formula without its constant factor k1 + 1; a word that is twice in the query counts twice."""
    texts = [Counter(words(text)) for text in documents]
    lengths = [text.total() for text in texts]
    average = sum(lengths) / len(texts)
    scores = []
    for text, length in zip(texts, lengths, strict=True):
        score = 0.0
        for word in words(query):
            containing = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
            frequency = text[word]
            if frequency:
                score += idf * frequency / (frequency + k1 * (1 - b + b * length / average))
        scores.append(score)
    return scores


def random_texts(count: int, longest: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        picked = random.choice([*WORDS, "the", "of", "x"], random.integers(1, longest + 1)).tolist()
        texts.append(f"The {', '.join(picked)} {random.choice(WORDS).title()}.")
    return texts


@pytest.mark.parametrize("k1, b", [(0.9, 0.4), (0.82, 0.68), (1.2, 1), (1.2, 0), (0, 0.4)])
def test_scores_are_those_of_the_formula(k1: float, b: float) -> None:
    documents, queries = random_texts(30, 12, seed=0), random_texts(9, 4, seed=1)
    queries[3] = "star star of the Rhine"
    scores, rows = Bm25Index(iter(documents), 30, Bm25Parameters(k1, b)).search(queries, 30)
    assert scores.shape == rows.shape == (9, 30)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    for query, text in enumerate(queries):
        expected = np.array(plain_bm25(documents, text, k1, b))
        found = int((expected > 0).sum())
        assert found > 0
        assert set(rows[query, :found]) == set(np.flatnonzero(expected))
        assert (rows[query, found:] == -1).all() and (scores[query, found:] == 0).all()
        np.testing.assert_allclose(scores[query, :found], expected[rows[query, :found]], rtol=1e-5)
        assert (np.diff(scores[query]) <= 0).all()


def test_other_forms_of_a_word_are_found_though_no_document_has_them() -> None:
    index = Bm25Index(["the rivers of europe", "stars and planets", "walks in the north"], 3, Bm25Parameters(0.9, 0.4))
    _, rows = index.search(["river", "starring", "WALKED north", "rivered zebra"], 2)
    assert rows.tolist() == [[0, -1], [1, -1], [2, -1], [0, -1]]


def test_ties_go_to_the_smaller_row() -> None:
    documents = ["sea", "star north", "star sea", "star north", "north star", "planet"]
    scores, rows = Bm25Index(documents, 6, Bm25Parameters(0.9, 0.4)).search(["star", "north star"], 5)
    assert rows.tolist() == [[1, 2, 3, 4, -1], [1, 3, 4, 2, -1]]
    assert scores[0, 0] == scores[0, 3] > 0
    _, fewer = Bm25Index(documents, 6, Bm25Parameters(0.9, 0.4)).search(["star", "north star"], 2)
    assert fewer.tolist() == [[1, 2], [1, 3]]


def test_queries_without_a_known_word_find_nothing() -> None:
    # A document of stop words alone must not be found by a query of stop words alone.
    index = Bm25Index(["star", "the of", "the river of"], 3, Bm25Parameters(0.9, 0.4))
    scores, rows = index.search(["river zebra", "zebra\n", "the of", "a", "?!", ""], 3)
    assert rows[1:].tolist() == [[-1] * 3] * 5
    assert not scores[1:].any()
    assert rows[0].tolist() == [2, -1, -1]


def test_words_of_one_letter_count() -> None:
    _, rows = Bm25Index(["vitamin c", "vitamin d", "vitamin k", "us u"], 4, Bm25Parameters(0.9, 0.4)).search(
        ["Vitamin K's role"], 3
    )
    assert rows[0].tolist() == [2, 0, 1]


def test_names_in_source_code_are_split_on_demand() -> None:
    documents = ["def get_value(self)", "def getValue(self)", "return HTTPServer.value", "x = 1.5"]
    _, rows = Bm25Index(documents, 4, Bm25Parameters(0.9, 0.4, split_names=True)).search(
        ["get value", "http server"], 3
    )
    assert rows.tolist() == [[0, 1, 2], [2, -1, -1]]
    _, whole = Bm25Index(documents, 4, Bm25Parameters(0.9, 0.4)).search(["get value", "http server"], 3)
    assert (whole == -1).all()


def test_sentences_without_blanks_are_found_by_their_parts() -> None:
    documents = ["東京都の人口は千万人です。", "北京是中国的首都", "ภาษาไทยเป็นภาษา", "서울은 대한민국의 수도", "abc"]
    queries = ["人口", "中国首都", "ภาษาไทย", "대한민국", "ＡＢＣ"]
    _, rows = Bm25Index(documents, 5, Bm25Parameters(0.9, 0.4)).search(queries, 1)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_documents_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"the {k} best of 3 documents"):
        Bm25Index(["star", "river", "sea"], 3, Bm25Parameters(0.9, 0.4)).search(["star"], k)


@pytest.mark.parametrize("k1, b", [(-0.1, 0.4), (0.9, -0.1), (0.9, 1.1), (float("nan"), 0.4), (0.9, float("nan"))])
def test_parameters_out_of_range_are_refused(k1: float, b: float) -> None:
    with pytest.raises(InputError, match="BM25 with k1"):
        Bm25Index(["star"], 1, Bm25Parameters(k1, b))


# Texts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both kinds of collection side by side, six rows; queries in another order than their rows."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "preprocess").mkdir()
    texts = ["Rhine river", "a star", "star and planet", "planet of a star", "sea", "north sea"]
    lines = [f"{pid}\t{text} \n" for pid, text in zip([30, 10, 20, 60, 50, 40], texts, strict=True)]
    (tmp_path / "dataset/collection.tsv").write_text("".join(lines))
    (tmp_path / "dataset/msmarco-docs.tsv").write_text("D7\thttp://x\tA title\tThe body\nD3\turl\t\tbody <sep> x\n")
    queries = "8\tplanets?\n5\twhere is the Rhine\n6\tnot judged\n7\tstars\n9\tzebra\n"
    for name in ("queries.train.tsv", "msmarco-doctrain-queries.tsv"):
        (tmp_path / "dataset" / name).write_text(queries)
    write_ids(tmp_path / "preprocess/pid2offset.pickle", np.array([30, 10, 20, 60, 50, 40]))
    (tmp_path / "preprocess/train-qid2offset.pickle").write_bytes(pickle.dumps({5: 0, 7: 1, 8: 2, 9: 3}))
    write_tokens(tmp_path / "preprocess", "passages", [[0, 2]] * 6, 2)
    (tmp_path / "preprocess/train-qrel.tsv").write_text("0\t0\t0\t1\n1\t0\t2\t1\n2\t0\t3\t1\n3\t0\t4\t1\n")
    return tmp_path


def test_texts_come_in_the_order_of_their_rows(root: Path) -> None:
    passages = list(read_passage_texts(CORPORA["passage"], root / "dataset", Collection(root / "preprocess")))
    assert passages == ["Rhine river", "a star", "star and planet", "planet of a star", "sea", "north sea"]
    write_ids(root / "preprocess/pid2offset.pickle", np.array([7, 3]))
    write_tokens(root / "preprocess", PASSAGES, random_sequences(2, 5, seed=0), 8)
    assert list(read_passage_texts(CORPORA["doc"], root / "dataset", Collection(root / "preprocess"))) == [
        "http://x A title The body",
        "url  body   x",
    ]
    for corpus in CORPORA.values():
        assert read_query_texts(corpus, root / "dataset", Collection(root / "preprocess"), "train") == [
            "where is the Rhine",
            "stars",
            "planets?",
            "zebra",
        ]


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("collection.tsv", None, r"collection\.tsv: no such file; the texts themselves are needed"),
        ("collection.tsv", "30\tone\n", r"collection\.tsv: has 1 passages, 6 were preprocessed"),
        (
            "collection.tsv",
            "30\tx\n10\ty\n40\tz\n",
            r"collection\.tsv, line 3: is not the passage preprocessed as row 2",
        ),
        (
            "collection.tsv",
            "30\tx\n10\ty\n20\tz\n60\tz\n50\tz\n40\tz\n1\tz\n",
            r"collection\.tsv, line 7: is not the pas",
        ),
        ("collection.tsv", "", r"collection\.tsv: has 0 passages, 6 were preprocessed"),
        ("collection.tsv", "30\tone\n2 two\n", r"collection\.tsv, line 2: expected"),
        ("queries.train.tsv", None, r"queries\.train\.tsv: no such file; the texts themselves are needed"),
        ("queries.train.tsv", "5\tx\n7\ty\n", r"queries\.train\.tsv: lacks 2 of the preprocessed queries"),
        ("queries.train.tsv", "five\tx\n", r"queries\.train\.tsv, line 1: the id 'five'"),
    ],
)
def test_texts_that_are_not_the_preprocessed_ones(root: Path, name: str, content: str | None, complaint: str) -> None:
    (root / "dataset" / name).unlink()
    if content is not None:
        (root / "dataset" / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        list(read_passage_texts(CORPORA["passage"], root / "dataset", Collection(root / "preprocess")))
        read_query_texts(CORPORA["passage"], root / "dataset", Collection(root / "preprocess"), "train")


# Negatives


def mine(root: Path, topk: int, first: int = 1, margin: float | None = None) -> Mined:
    folder = root / "mined"
    with mine_bm25_negatives(
        CORPORA["passage"],
        root / "dataset",
        Collection(root / "preprocess"),
        "train",
        folder,
        Selection(Ranks(first, topk), margin),
        Bm25Parameters(0.9, 0.4),
    ) as mined:
        return Mined(mined.hard, np.array(mined.scores), np.array(mined.rows))


def as_lists(hard: HardNegatives) -> dict[int, list[int]]:
    return {query: rows.tolist() for query, rows in hard.items()}


def test_negatives_are_the_best_that_are_not_relevant(root: Path) -> None:
    hard, scores, rows = mine(root, 3)
    # "stars": 1 is shorter than 2 and 3, of which 2 is relevant; "planets": 2 and 3 alike, 3 is relevant.
    assert as_lists(hard) == {0: [], 1: [1, 3], 2: [2], 3: []}
    assert rows.shape == scores.shape == (4, 6)
    assert rows.tolist() == [[0, *[-1] * 5], [1, 2, 3, -1, -1, -1], [2, 3, *[-1] * 4], [-1] * 6]
    assert as_lists(mine(root, 1).hard) == {0: [], 1: [1], 2: [2], 3: []}


def test_negatives_of_some_ranks_below_the_margin(root: Path) -> None:
    """Query 0 finds its relevant passage alone, query 3 finds nothing."""
    assert as_lists(mine(root, 3, first=2).hard) == {0: [], 1: [3], 2: [], 3: []}
    # Passage 1 scores more than 2, which is relevant to query 1; 3 scores as much. For query 2, 2 and 3 are alike.
    assert as_lists(mine(root, 3, margin=0).hard) == {0: [], 1: [3], 2: [2], 3: []}
    with pytest.raises(InputError, match=r"^no query has a hard negative \(ranks 1-3, margin 0.05\); give a lower "):
        mine(root, 3, margin=0.05)
    with pytest.raises(InputError, match=r"^no query has a hard negative \(ranks 3-3\); give other --negative_ranks$"):
        mine(root, 3, first=3)


def test_queries_that_find_nothing_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        mine(root, 3)
    [warning] = [message for message in caplog.messages if "queries" in message]
    assert warning.startswith("1 of 4 queries share no word with any passage, ") and warning.endswith("first is zebra")


@pytest.mark.parametrize("topk, content", [(6, "0\t0\t0\t1\n"), (3, "0\t0\t6\t1\n"), (3, "4\t0\t1\t1\n")])
def test_negatives_that_cannot_be_mined(root: Path, topk: int, content: str) -> None:
    (root / "preprocess/train-qrel.tsv").write_text(content)
    with pytest.raises(InputError, match=r"cannot mine 6 negatives|names document 6, there are 6|names query 4"):
        mine(root, topk)


TOPK = 7


@pytest.mark.parametrize(
    "corpus, k1, b, flags", [("passage", 0.82, 0.68, []), ("doc", 1.5, 0.3, ["--k1", "1.5", "--b", "0.3"])]
)
def test_prepare_hardneg(
    preprocessed: Path, tmp_path: Path, corpus: str, k1: float, b: float, flags: list[str]
) -> None:
    printed = must_run(
        "star/prepare_hardneg.py",
        "--data_type",
        corpus,
        "--retriever",
        "bm25",
        "--mode",
        "train",
        "--topk",
        str(TOPK),
        "--output_dir",
        tmp_path / "out",
        *flags,
        cwd=preprocessed,
    )
    assert f"k1 {k1}, b {b}" in printed
    root = preprocessed / "data" / corpus
    documents = list(read_passage_texts(CORPORA[corpus], root / "dataset", Collection(root / "preprocess")))
    queries = read_query_texts(CORPORA[corpus], root / "dataset", Collection(root / "preprocess"), "train")
    relevant = read_relevant(root / "preprocess" / "train-qrel.tsv")
    hard = {int(qid): rows for qid, rows in json.loads((tmp_path / "out/hard.json").read_text()).items()}
    assert sorted(hard) == list(range(len(queries)))
    run = {query: rows for query, rows, *_ in read_run(tmp_path / "out/train.rank.tsv")}
    scores = np.load(tmp_path / "out/train.score.npy")
    texts = [set(words(text)) for text in documents]
    for query in range(len(queries)):
        assert hard[query] == [row for row in run.get(query, []) if row not in relevant.get(query, [])][:TOPK]
        wanted = words(queries[query])
        sharing = sum(not text.isdisjoint(wanted) for text in texts)
        assert len(run.get(query, [])) == min(sharing, TOPK + 10)
    assert sum(map(len, hard.values())) > len(queries)
    for query in range(0, len(queries), len(queries) // 4):
        expected = np.array(plain_bm25(documents, queries[query], k1, b))
        found = run.get(query, [])
        np.testing.assert_allclose(scores[query, : len(found)], expected[found], rtol=1e-5)
        np.testing.assert_allclose(scores[query, : len(found)], -np.sort(-expected)[: len(found)], rtol=1e-5)


def test_prepare_hardneg_needs_no_torch(root: Path) -> None:
    """It takes seconds to load."""
    (root / "passage").mkdir()
    for name in ("dataset", "preprocess"):
        (root / name).rename(root / "passage" / name)
    flags = ("--data_type", "passage", "--data_root", root, "--retriever", "bm25", "--mode", "train", "--topk", 3)
    ended = run_without(("torch",), "star/prepare_hardneg.py", *flags)
    assert ended.returncode == 0, ended.stderr
    hard = json.loads((root / "passage/bm25_retrieve/hard.json").read_text())
    assert hard == {"0": [], "1": [1, 3], "2": [2], "3": []}


def test_prepare_hardneg_refuses(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "passage").mkdir()
    for name in ("dataset", "preprocess"):
        (root / name).rename(root / "passage" / name)
    arguments = ("--data_type", "passage", "--data_root", root, "--retriever", "bm25", "--mode", "train")
    script = "star/prepare_hardneg.py"
    assert "does not use --model_dir" in refused(script, *arguments, "--model_dir", root, capsys=capsys)
    assert "does not use --model_dir, --pooling, --normalize, --fp16" in refused(
        script, *arguments, "--fp16", capsys=capsys
    )
    assert "--k1, --b and --split_names need --retriever bm25" in refused(
        script, *arguments, "--retriever", "dense", "--k1", 1, capsys=capsys
    )
    for more in (("--nprobe", 3), ("--index_factory", "SQ8")):
        assert "does not use --index_factory, --index_path" in refused(script, *arguments, *more, capsys=capsys)
    assert "cannot mine 200 negatives (--topk or --negative_ranks) from 6 passages" in refused(
        script, *arguments, capsys=capsys
    )
    (root / "passage/dataset/collection.tsv").unlink()
    assert "collection.tsv: no such file" in refused(script, *arguments, "--topk", 3, capsys=capsys)
    assert not (root / "passage/bm25_retrieve").exists()
