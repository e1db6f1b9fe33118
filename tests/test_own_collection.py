"""A collection of one's own, from import_collection.py to nDCG@10 with its own ids, and empty texts on the way."""

import json
import shutil
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import drhard.embeddings
import drhard.texts
from drhard.backends import ExactBackend
from drhard.collection import Collection
from drhard.compressed import open_compressed
from drhard.dataset import find_corpus
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.hard_json import open_pool
from drhard.index import NO_ROWS, restore_rows
from drhard.msmarco import PASSAGE
from drhard.qrels import read_grades
from drhard.runs import read_rankings
from drhard.settings import SearchSettings
from drhard.sources import IDS, QUERY_IDS, QUERY_TEXTS, TITLES
from drhard.sources import TEXTS as TEXT_NAMES
from drhard.strategies import RANDOM

import documented
import numpy as np
import pytest
import pytrec_eval
from formats import KINDS, register, write_beir, write_files, write_jsonl
from helpers import (
    SIZES,
    TEXTS,
    call_script,
    must_run,
    parse_flags,
    refused,
    save_plain,
    save_tiny,
    save_vocabulary,
    snapshot,
)
from sentence_transformers import SentenceTransformer
from test_your_retriever import FEW, NAME, small

PASSAGES = [  # id, title, text
    ("007", "The Rhine", "is a river\nthat rises in the alps"),
    ("MED-10", "", "a star is a ball of plasma"),
    ("Ü-ñ", "", ""),
    ("msmarco_passage_00_0", "Encoder", "an encoder turns a text into a vector"),
    *((f"d{number:03}", "", f"{TEXTS[number % 4]} and {number} a star") for number in range(30)),
]
EMPTY = 2  # the row of the empty text
QUERIES = [("q1", "where is the river rhine"), ("007", "what is a star"), ("ñ", "a text"), ("none", "not judged")]
JUDGED = [
    ("q1", "007", 2),
    ("q1", "Ü-ñ", 1),
    ("q1", "d000", 1),
    ("007", "MED-10", 1),
    ("007", "d002", 3),
    ("ñ", "d003", 1),
]
LENGTHS = ("--max_query_length", 8, "--max_doc_length", 16)
PLACE = ("--data_type", "passage", "--data_root", "root")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_vocabulary(folder / "vocabulary")
    return save_tiny(folder / "model")


def preprocess(folder: Path, models: Path, *flags: object) -> None:
    lengths = ("--max_seq_length", 16, "--max_query_length", 8, "--threads", 1)
    vocabulary = models.parent / "vocabulary"
    must_run("preprocess.py", *PLACE, "--model_name_or_path", vocabulary, *lengths, *flags, cwd=folder)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A folder with the collection in ``root``, imported and preprocessed."""
    folder = tmp_path_factory.mktemp("imported")
    write_beir(folder / "beir", PASSAGES, QUERIES, {"test": JUDGED, "train": JUDGED[:4]})
    must_run("import_collection.py", folder / "beir", "--data_root", "root", cwd=folder)
    preprocess(folder, models)
    return folder


def infer(folder: Path, models: Path, *flags: object) -> None:
    given = ("--model_dir", models, *LENGTHS, "--mode", "test", "--topk", 20, "--no_cuda")
    must_run("star/inference.py", *PLACE, *given, *flags, cwd=folder)


def convert(folder: Path, *flags: object) -> str:
    places = ("--input_dir", "root/passage/evaluate/star", "--preprocess_dir", "root/passage/preprocess")
    given = ("--output_dir", "official", "--mode", "test", "--dataset", "passage")
    return must_run("cvt_back.py", *places, *given, *flags, cwd=folder)


@pytest.mark.parametrize("kind", ["beir", "packed", "ir_datasets", *KINDS])
def test_from_any_source_to_ndcg(tmp_path: Path, models: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is pytrec_eval's, computed from the official judgements and the run in official ids."""
    qrels = {"test": JUDGED}
    if kind in ("beir", "packed"):
        source = [str(write_beir(tmp_path / "source", PASSAGES, QUERIES, qrels, kind == "packed"))]
    elif kind == "ir_datasets":
        source = register(tmp_path, "own", PASSAGES, QUERIES, qrels, monkeypatch)
    else:
        source = write_files(tmp_path, kind, PASSAGES, QUERIES, qrels)
    must_run("import_collection.py", *source, "--data_root", "root", cwd=tmp_path)
    preprocess(tmp_path, models)
    infer(tmp_path, models)
    convert(tmp_path, "--trec")
    convert(tmp_path)

    judged: dict[str, dict[str, int]] = {}
    for qid, docid, grade in JUDGED:
        judged.setdefault(qid, {})[docid] = grade
    run: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "official/test.trec").read_text(encoding="utf-8").splitlines():
        qid, _, docid, _, score, _ = line.split(" ")
        run.setdefault(qid, {})[docid] = float(score)
    assert set(run) == {"q1", "007", "ñ"} and {len(found) for found in run.values()} == {20}
    assert "Ü-ñ" not in {docid for found in run.values() for docid in found}
    values = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    expected = f"{sum(value['ndcg_cut_10'] for value in values.values()) / len(judged):.4f}"
    assert float(expected) > 0
    for path in ("official/test.trec", "official/test.rank.tsv"):
        printed = must_run("trec_eval.py", "root/passage/dataset/test.qrels", path, "-m", "nDCG@10", cwd=tmp_path)
        assert printed.split() == ["nDCG@10", "all", expected]
    if kind == "beir":
        printed = must_run("trec_eval.py", "source/qrels/test.tsv", "official/test.trec", "-m", "nDCG@10", cwd=tmp_path)
        assert printed.split() == ["nDCG@10", "all", expected]


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beir = write_beir(tmp_path / "beir", PASSAGES, QUERIES, {"test": JUDGED})
    first, second = (must_run("import_collection.py", beir, "--data_root", "root", cwd=tmp_path) for _ in range(2))
    assert first.splitlines()[1] == "Wrote root/passage/dataset: 34 passages; test (3 queries, 6 judgements)"
    assert second.splitlines()[1].startswith("Already there: root/passage/dataset: 34 passages")
    given = ("--data_root", tmp_path / "root")
    for flags, complaint in {
        (): "give either SOURCE or --corpus",
        (beir, "--corpus", "a"): "give either SOURCE or --corpus",
        (beir, "--queries", "test=a"): "--queries and --qrels belong to --corpus",
        (beir, beir): "give one BEIR folder",
        (tmp_path,): "corpus.jsonl: no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv",
        ("--corpus", tmp_path / "none", "--queries", f"test={beir}"): "none: no such file",
        ("--corpus", beir / "corpus.jsonl"): "there are no queries; give --queries SPLIT=FILE",
        ("--corpus", "a", "--queries", "test=a", "--qrels", "dev=a"): "the split dev has no queries",
        ("--corpus", "a", "--queries", "test=a", "--qrels", "test=a", "test=b"): "--qrels test=… is given twice",
        (beir, "--empty_texts", "skip"): "has another collection, or one imported with other settings",
    }.items():
        assert complaint in refused("import_collection.py", *flags, *given, capsys=capsys)
    for word in ("test", "=a", "../x=a", "test="):
        with pytest.raises(SystemExit):
            parse_flags("import_collection.py", "--corpus", "a", "--queries", word)


# Splits


def test_splits_are_those_of_the_collection(
    imported: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = imported / "root" / "passage"
    assert Collection(root / "preprocess").splits() == ["test", "train"]
    given = ("--data_root", imported / "root", "--data_type", "passage", *LENGTHS, "--model_dir", models)
    message = refused("star/inference.py", *given, "--mode", "dev", capsys=capsys)
    assert message.endswith("dev-query.memmap: no such file; of the splits, there are test, train")
    places = ("--input_dir", tmp_path, "--preprocess_dir", root / "preprocess", "--output_dir", tmp_path)
    message = refused("cvt_back.py", *places, "--mode", "dev", "--dataset", "passage", capsys=capsys)
    assert message.endswith("preprocess: has no queries of dev; there are test, train")
    message = refused("star/prepare_hardneg.py", *given[:4], "--retriever", "bm25", "--mode", "dev", capsys=capsys)
    assert message.endswith("dataset: has no queries of dev; there are test, train")
    copy = shutil.copytree(root / "preprocess", tmp_path / "copy")
    (copy / "test-qrel.tsv").unlink()
    message = refused("star/prepare_hardneg.py", *given, "--preprocess_dir", copy, "--mode", "test", capsys=capsys)
    assert message.endswith("test-qrel.tsv: no such file; of the judged splits, there is train")
    for script in ("star/train.py", "adore/train.py"):
        with pytest.raises(SystemExit):
            parse_flags(script, "--eval_split", "train")
        assert "name another split" in capsys.readouterr().err


# Ids


def test_official_ids_are_those_of_the_source(imported: Path) -> None:
    collection = Collection(imported / "root/passage/preprocess")
    assert collection.official_pids("D").take(range(4)) == [id_ for id_, _, _ in PASSAGES[:4]]
    assert collection.official_qids("train").take([1, 0]) == ["007", "q1"]
    assert collection.pids().tolist() == list(range(34))


def test_a_run_of_other_ids_is_refused(
    imported: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(imported, models)
    stamp = json.loads((imported / "root/passage/evaluate/star/test.rank.tsv.json").read_text())
    assert stamp["documents"] == Collection(imported / "root/passage/preprocess").official_pids().digest()
    other = [(f"x{id_}", title, text) for id_, title, text in PASSAGES]
    judged = [(qid, f"x{docid}", grade) for qid, docid, grade in JUDGED]
    beir = write_beir(tmp_path / "b", other, QUERIES, {"test": judged})
    must_run("import_collection.py", beir, "--data_root", "root", cwd=tmp_path)
    preprocess(tmp_path, models)
    places = ("--input_dir", imported / "root/passage/evaluate/star", "--output_dir", tmp_path / "out")
    given = ("--preprocess_dir", tmp_path / "root/passage/preprocess", "--mode", "test", "--dataset", "passage")
    assert "was made with documents other than" in refused("cvt_back.py", *places, *given, capsys=capsys)


def test_another_collection_in_the_same_place_leaves_no_ids_behind(
    imported: Path, models: Path, tmp_path: Path
) -> None:
    """preprocess.py of MS MARCO's files after an imported collection, into one folder."""
    folder = tmp_path / "pre"
    preprocess(imported, models, "--preprocess_dir", folder)
    assert (folder / "passages.ids").exists() and (folder / "passages_empty.npy").exists()
    dataset = tmp_path / "root" / "passage" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "collection.tsv").write_text("".join(f"{row}\ta star\n" for row in range(len(PASSAGES))))
    (dataset / "queries.eval.small.tsv").write_text("5\ta star\n")
    preprocess(tmp_path, models, "--preprocess_dir", folder)
    assert not list(folder.glob("*.ids*")) and not list(folder.glob("*_empty.npy"))
    assert Collection(folder).splits() == ["lead"]
    assert Collection(folder).official_pids("D").take([3]) == ["D3"] and not len(Collection(folder).left_out)


def test_search_shows_them(imported: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infer(imported, models)
    shutil.copytree(models, imported / "root/passage/trained_models/star", dirs_exist_ok=True)
    save_vocabulary(imported / "root/passage/trained_models/star")
    given = ("search.py", "--data_root", "root", "--topk", 33, "--no_cuda", "--mode", "test")
    answer = json.loads(must_run(*given, "--json", "--qid", "007", cwd=imported))
    assert answer["query"] == "what is a star"
    assert answer["known"] == {"mode": "test", "qid": "007", "relevant": ["MED-10", "d002"]}
    found = answer["rankings"][0]["passages"]
    assert {hit["pid"] for hit in found} == {id_ for id_, _, _ in PASSAGES} - {PASSAGES[EMPTY][0]}
    assert {hit["pid"]: hit["grade"] for hit in found if hit["grade"]} == {"MED-10": 1, "d002": 3}
    texts = {hit["pid"]: hit["text"] for hit in found}
    assert texts["007"] == "The Rhine is a river that rises in the alps"
    known = json.loads(must_run(*given, "--json", "--query", "A  TEXT", cwd=imported))["known"]
    assert known == {"mode": "test", "qid": "ñ", "relevant": ["d003"]}
    place = ("--data_root", imported / "root", "--mode", "test")
    assert "has no test query with the id 'q'" in refused("search.py", *place, "--qid", "q", capsys=capsys)
    message = refused("search.py", *place, "--query", "a", "--topk", 34, capsys=capsys)
    assert "cannot return the 34 best of 33 documents" in message


# Empty texts are never retrieved


def test_rows_of_empty_texts(imported: Path, models: Path, tmp_path: Path) -> None:
    collection = Collection(imported / "root/passage/preprocess")
    assert collection.left_out.tolist() == [EMPTY] and collection.count_found() == 33
    preprocess(imported, models, "--preprocess_dir", tmp_path / "skipped", "--empty_texts", "skip")
    skipped = Collection(tmp_path / "skipped")
    assert not len(skipped.left_out) and not list((tmp_path / "skipped").glob("*_empty.npy"))
    assert skipped.official_pids().take([2]) == ["msmarco_passage_00_0"] and skipped.pids()[2] == 3
    copy = shutil.copytree(collection.folder, tmp_path / "copy")
    for rows, complaint in {
        (99,): "names rows that do not exist",
        (1, 2): "expected 1 rows in ascending order",
    }.items():
        np.save(copy / "passages_empty.npy", np.array(rows))
        with pytest.raises(InputError, match=rf"passages_empty\.npy: {complaint}.*; run preprocess.py again"):
            Collection(copy).count_found()


@pytest.mark.parametrize("flags", [(), ("--index_factory", "PQ4x4"), ("--index_factory", "IVF2,Flat", "--nprobe", 2)])
def test_inference_does_not_find_them(
    imported: Path, models: Path, tmp_path: Path, flags: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    infer(imported, models, "--topk", 33, "--output_dir", tmp_path, *flags)
    for ranking in read_rankings(tmp_path / "test.rank.tsv"):
        assert sorted(map(int, ranking.docids)) == [row for row in range(34) if row != EMPTY]
    given = ("--model_dir", models, *LENGTHS, "--mode", "test", "--no_cuda", "--output_dir", tmp_path, *flags)
    place = ("--data_type", "passage", "--data_root", imported / "root", "--topk", 34)
    message = refused("star/inference.py", *place, *given, capsys=capsys)
    assert "cannot return the 34 best of 33 documents" in message


@pytest.mark.parametrize("flags", [("--model_dir",), ("--retriever", "bm25")])
def test_mining_does_not_pick_them(imported: Path, models: Path, tmp_path: Path, flags: tuple[object, ...]) -> None:
    dense = (models, *LENGTHS, "--no_cuda") if flags == ("--model_dir",) else ()
    given = (*PLACE, "--mode", "train", "--topk", 20, "--output_dir", tmp_path, *flags, *dense)
    must_run("star/prepare_hardneg.py", *given, cwd=imported)
    hard = json.loads((tmp_path / "hard.json").read_text())
    assert set(hard) == {"0", "1"} and all(EMPTY not in rows for rows in hard.values())


def test_trainings_do_not_learn_from_them(imported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = shutil.copytree(imported / "root/passage/preprocess", tmp_path / "copy")
    assert Collection(copy).relevant_found("train") == {0: [0, 4], 1: [1]}  # without the empty row 2
    (copy / "train-qrel.tsv").write_text(f"0\t0\t{EMPTY}\t1\n1\t0\t{EMPTY}\t1\n1\t0\t3\t1\n")
    assert Collection(copy).relevant("train") == {0: [EMPTY], 1: [EMPTY, 3]}
    assert Collection(copy).relevant_found("train") == {1: [3]}
    assert "left out 1 of 2 queries, to which only empty texts are relevant" in caplog.text
    (copy / "train-qrel.tsv").write_text(f"0\t0\t{EMPTY}\t1\n")
    with pytest.raises(InputError, match="judges only empty texts relevant"):
        Collection(copy).relevant_found("train")


def test_a_margin_does_not_look_for_them(imported: Path, models: Path, tmp_path: Path) -> None:
    """A query with an empty relevant passage keeps its negatives below those of its other relevant passages."""
    given = (*PLACE, "--mode", "train", "--output_dir", tmp_path, "--model_dir", models, *LENGTHS, "--no_cuda")
    must_run("star/prepare_hardneg.py", *given, "--topk", 20, cwd=imported)
    most = json.loads((tmp_path / "hard.json").read_text())
    must_run("star/prepare_hardneg.py", *given, "--negative_ranks", "1-20", "--relative_margin", 0.0, cwd=imported)
    hard = json.loads((tmp_path / "hard.json").read_text())
    assert set(hard["0"]) <= set(most["0"]) and sum(map(len, hard.values()))


def test_random_negatives_are_not_empty() -> None:
    pool = open_pool(RANDOM, None, [0], 10, [2, 9])
    assert pool is not None and list(pool[0]) == [0, 1, 3, 4, 5, 6, 7, 8]


def exact(documents: np.ndarray, left_out: np.ndarray) -> ExactIndex:
    return ExactIndex(documents, block_rows=50, left_out=left_out)


@pytest.mark.parametrize("kind", ["exact", "Flat", "HNSW8"])
def test_an_index_leaves_out_rows(kind: str) -> None:
    random = np.random.default_rng(4)
    documents = random.integers(-3, 4, (300, 8)).astype(np.float32)  # with ties
    queries = random.integers(-3, 4, (9, 8)).astype(np.float32)
    left_out = np.sort(random.choice(300, 60, replace=False))
    scores = queries @ documents.T
    scores[:, left_out] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :240]
    if kind == "exact":
        index = exact(documents, left_out)
    else:
        index = open_compressed(documents, kind, None, {}, left_out=left_out)
    found_scores, rows = index.search(queries, 240)
    if kind == "HNSW8":
        assert not np.isin(rows, left_out).any()
        np.testing.assert_array_equal(found_scores[rows >= 0], np.take_along_axis(scores, rows, 1)[rows >= 0])
    else:
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(found_scores, np.take_along_axis(scores, expected, 1))
    with pytest.raises(InputError, match="cannot return the 241 best of 240 documents"):
        index.search(queries, 241)


def test_an_index_file_without_empty_texts(tmp_path: Path) -> None:
    documents = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    path, queries = tmp_path / "index", documents[:3]
    left_out = np.array([1, 98])
    _, rows = open_compressed(documents, "SQ8", path, {}, left_out=left_out).search(queries, 98)
    _, again = open_compressed(documents, "SQ8", path, {}, left_out=left_out).search(queries, 98)
    assert (rows == again).all() and not np.isin(rows, left_out).any()
    with pytest.raises(InputError, match="holds 98 documents of 8 dimensions, the embeddings are 100 x 8"):
        open_compressed(documents, "SQ8", path, {})
    with pytest.raises(InputError, match="was built from other embeddings"):
        open_compressed(documents, "SQ8", path, {}, left_out=np.array([1, 97]))


def test_restored_rows() -> None:
    left_out = np.array([0, 1, 5, 9])
    kept = [row for row in range(12) if row not in left_out]
    assert restore_rows(np.arange(8), left_out).tolist() == kept
    assert restore_rows(np.array([[3, -1]]), NO_ROWS).tolist() == [[3, -1]]


def test_settings_hand_on_what_is_left_out() -> None:
    documents = np.eye(4, dtype=np.float32)
    for settings in (SearchSettings(), SearchSettings(factory="Flat", gpus=None)):
        _, rows = settings.open(documents, 3, np.array([2])).search(documents, 3)
        assert not (rows == 2).any()
    assert ExactBackend().open(documents, 1, NO_ROWS).search(documents, 1)[1].ravel().tolist() == [0, 1, 2, 3]


def test_mrr_of_ids_that_are_texts(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 007 0\nq1 0 Ü 2\nq2 0 MED-10 1\n", encoding="utf-8")
    (tmp_path / "run").write_text("q1\t007\t1\nq1\tÜ\t2\nq2\t7\t1\n", encoding="utf-8")
    assert "MRR @10: 0.25\n" in must_run("msmarco_eval.py", "qrels", "run", cwd=tmp_path)


def test_hard_negatives_for_other_libraries(imported: Path, models: Path, tmp_path: Path) -> None:
    given = (*PLACE, "--mode", "train", "--topk", 5, "--model_dir", models, *LENGTHS, "--no_cuda")
    must_run("star/prepare_hardneg.py", *given, "--output_dir", tmp_path / "mined", cwd=imported)
    places = ("--input_dir", tmp_path / "mined", "--preprocess_dir", imported / "root/passage/preprocess")
    convert = ("cvt_back.py", "--hard_negatives", *places, "--mode", "train", "--dataset", "passage")
    printed = must_run(*convert, "--output_dir", "out", cwd=tmp_path)
    assert printed.splitlines()[-1] == "Wrote out/train.hard.jsonl"
    assert "already exists" in must_run(*convert, "--output_dir", "out", cwd=tmp_path)
    hard = json.loads((tmp_path / "mined" / "hard.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.hard.jsonl").read_text().splitlines()]
    assert [line["qid"] for line in lines] == ["q1", "007"]
    assert [line["pos"] for line in lines] == [["007", "Ü-ñ", "d000"], ["MED-10"]]
    for row, line in enumerate(lines):
        assert line["neg"] == {"mined": [PASSAGES[passage][0] for passage in hard[str(row)]]}


def test_grades_of_beirs_columns(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t007\t2\n")
    assert read_grades(tmp_path / "test.tsv") == {"q1": {"007": 2}}


# New documents


def write_halves(folder: Path) -> list[str]:
    """The collection in two files, with a judgement in the first whose passage comes with the second. Returns flags."""
    rows = [{"_id": id_, "title": head, "text": words} for id_, head, words in PASSAGES]
    write_jsonl(folder / "first.jsonl", rows[:21])
    write_jsonl(folder / "second.jsonl", rows[21:])
    lines = "".join(f"{id_}\t{words}\n" for id_, words in QUERIES)
    (folder / "queries.tsv").write_text(lines, encoding="utf-8")
    judged = [*JUDGED, ("q1", "d020", 1), ("ñ", "d029", 2)]
    lines = "".join(f"{qid} 0 {docid} {grade}\n" for qid, docid, grade in judged)
    (folder / "test.qrels").write_text(lines, encoding="utf-8")
    return ["--queries", "test=queries.tsv", "--qrels", "test=test.qrels"]


def test_appended_documents_give_the_files_of_all_at_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dataset, tokens, embeddings, run: byte by byte. What was made from the first documents alone is not misread."""
    monkeypatch.setattr(drhard.embeddings, "WINDOW", 8)
    once, grown = tmp_path / "once", tmp_path / "grown"
    once.mkdir()
    flags = write_halves(once)
    shutil.copytree(once, grown)
    for folder, corpora in ((once, ["first.jsonl", "second.jsonl"]), (grown, ["first.jsonl"])):
        must_run("import_collection.py", "--corpus", *corpora, *flags, "--data_root", "root", cwd=folder)
        preprocess(folder, models)
        infer(folder, models)
        infer(folder, models, "--index_factory", "SQ8", "--index_path", "index", "--output_dir", "with-index")
    save_vocabulary(Path(shutil.copytree(models, tmp_path / "star")))
    search = ("search.py", "--data_root", "root", "--topk", 5, "--no_cuda", "--model_dir", tmp_path / "star", "--json")
    must_run(*search, "--query", "a star", cwd=grown)
    convert(grown, "--output_dir", "before")

    add = ("import_collection.py", "--append", "--corpus", "second.jsonl", "--data_root", "root")
    assert must_run(*add, cwd=grown).splitlines() == [
        "Appending second.jsonl",
        "Wrote root/passage/dataset: 34 passages; test (3 queries, 8 judgements)",
    ]
    assert must_run(*add, cwd=grown).splitlines()[1].startswith("Already there: root/passage/dataset: 34 passages")
    preprocess(grown, models)
    with chdir(grown):  # the run of the first documents, and an index of them
        message = refused("cvt_back.py", *OLD_RUN, "--output_dir", "after", capsys=capsys)
        assert "was made with documents other than" in message
        assert message.endswith("or search again if documents were appended")
        given = ("--model_dir", models, *LENGTHS, "--mode", "test", "--topk", 20, "--no_cuda")
        indexed = ("--index_factory", "SQ8", "--index_path", "index", "--output_dir", "with-index")
        message = refused("star/inference.py", *PLACE, *given, *indexed, capsys=capsys)
        assert "index: " in message and "delete it" in message
        (grown / "index").unlink()
    infer(grown, models)
    infer(grown, models, "--index_factory", "SQ8", "--index_path", "index", "--output_dir", "with-index")
    for name in ("root/passage/dataset", "root/passage/evaluate", "with-index"):
        assert snapshot(grown / name) == snapshot(once / name)
    starts, read = [], drhard.texts.read_raw_lines
    monkeypatch.setattr(
        drhard.texts, "read_raw_lines", lambda path, start: starts.append(start) or read(path, start=start)
    )
    answers = [
        json.loads(must_run(*search, "--query", "an encoder and 29 a star", cwd=folder))["rankings"][0]["passages"]
        for folder in (grown, once)
    ]
    assert answers[0] == answers[1] and len(starts) == 2 and starts[0] > starts[1] == 0
    assert snapshot(grown / "root") == snapshot(once / "root")  # with the offsets that search.py found


OLD_RUN = ("--input_dir", "root/passage/evaluate/star", "--preprocess_dir", "root/passage/preprocess")
OLD_RUN = (*OLD_RUN, "--mode", "test", "--dataset", "passage")


# docs/own-collection.md


@pytest.mark.usefixtures("capsys")
def test_every_command_of_the_page_runs_after_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed but for sizes, with a small model and small data under the names that the page gives."""
    monkeypatch.chdir(tmp_path)
    plain = SentenceTransformer(str(save_plain(tmp_path / "plain", "bert")), device="cpu")
    plain.save(str(tmp_path / NAME))
    qrels = {"train": JUDGED, "test": JUDGED}
    write_beir(tmp_path / "scifact", PASSAGES, QUERIES, qrels)
    write_jsonl(tmp_path / "docs.jsonl", [{"_id": id_, "title": head, "text": words} for id_, head, words in PASSAGES])
    lines = "".join(f"{id_}\t{words}\n" for id_, words in QUERIES)
    write_jsonl(tmp_path / "more.jsonl", [{"_id": "more", "text": "a star of the sea"}])
    for name, content in {
        "later.tsv": lines,
        "later.qrels": "q1 0 more 1\n",
        "train.tsv": lines,
        "topics.txt": lines,
        "new.csv": "id,text\n5,what\n",
        "train.qrels": "q1 0 007 2\n",
        "test.qrels": "q1 0 007 2\n",
    }.items():
        Path(name).write_text(content, encoding="utf-8")
    have_ir_datasets = find_spec("ir_datasets") is not None
    if have_ir_datasets:
        register(tmp_path, "beir/scifact", PASSAGES, QUERIES, qrels, monkeypatch)
    fewer = {"star/prepare_hardneg.py": ["--topk", "5"], "star/inference.py": ["--topk", "33"]}
    fewer |= {"adore/train.py": ["--neg_topk", "20"], "adore/inference.py": ["--topk", "33"]}
    for command in documented.in_document(documented.OWN_COLLECTION):
        assert command.script is not None, command.where
        if "ir_datasets" in " ".join(command.words) and not have_ir_datasets:
            continue
        words = [*small(command.words[2:]), *FEW.get(command.script, ()), *fewer.get(command.script, ())]
        try:
            call_script(command.script, *words)
        except SystemExit as end:
            pytest.fail(f"{command.where}: 'python {command.script} {' '.join(words)}' ended with exit code {end.code}")
    model = SentenceTransformer("mine/exported", device="cpu")
    assert model.encode_query(["the rhine"]).shape == (1, SIZES["hidden_size"])
    assert Path("mine/official/adore/test.trec").read_text(encoding="utf-8").startswith("q1 Q0 ")
    assert list(Collection(Path("mine/passage/preprocess")).splits()) == ["later", "test", "train"]
    assert "more" in Collection(Path("mine/passage/preprocess")).official_pids().take(range(35))
    assert set(find_corpus(PASSAGE, Path("from-files/passage/dataset")).modes) == {"train", "test", "new"}


def test_names_of_fields_on_the_page() -> None:
    page = (documented.OWN_COLLECTION).read_text(encoding="utf-8")
    for names in (IDS, TITLES, TEXT_NAMES, QUERY_IDS, QUERY_TEXTS):
        assert f"| {', '.join(f'`{name}`' for name in names)}" in page
