"""search.py on a part of the sample: typed queries give what the inference scripts give for them."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from io import BytesIO, StringIO, TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Any

from drhard.answers import Answer, Hit, Ranking, render_text
from drhard.collection import Collection
from drhard.known_queries import KnownQuery
from drhard.model_folder import load_encoder, save_encoder
from drhard.model_tokenizer import open_tokenizer
from drhard.msmarco import PASSAGE
from drhard.searcher import QueryEncoder
from drhard.texts import read_passage_texts, read_query_texts

import documented
import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    call_script,
    load_script,
    must_run,
    refused,
    run_without,
    save_tiny,
    save_vocabulary,
    write_sample,
)

SCRIPT = "search.py"
PAGE = ROOT / "docs" / "search.md"
SAMPLE = Path("runs", "sample", "passage")  # as the quickstart writes it
DEPTH = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as the quickstart leaves it: STAR with its embeddings and runs, and an ADORE."""
    folder = tmp_path_factory.mktemp("search")
    root, models = folder / SAMPLE, folder / SAMPLE / "trained_models"
    write_sample(root / "dataset")
    model = load_encoder(ROOT / "data" / "sample" / "warmup")
    save_encoder(model, models / "star", tokenizer_from=ROOT / "data" / "sample" / "warmup")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter) if parameter.dim() > 1 else 0
    adore = root / "adore_train" / "models" / "epoch-5"
    save_encoder(model, adore, tokenizer_from=models / "star")
    flags = ("--data_root", "runs/sample")
    must_run("preprocess.py", *flags, "--model_name_or_path", models / "star", "--threads", 1, cwd=folder)
    must_run("star/inference.py", *flags, "--data_type", "passage", "--max_doc_length", 64, "--mode", "dev", cwd=folder)
    must_run(
        "adore/inference.py",
        "--model_dir",
        adore,
        "--output_dir",
        root / "evaluate" / "adore-star",
        "--preprocess_dir",
        root / "preprocess",
        "--mode",
        "dev",
        "--dmemmap_path",
        root / "evaluate" / "star" / "passages.memmap",
        cwd=folder,
    )
    # The page also prints commands for MS MARCO, in their default places.
    (folder / "data").mkdir()
    (folder / "data" / "passage").symlink_to(root)
    (models / "adore-star").symlink_to(adore)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That directory, as the current one; the folder of the collection in it."""
    monkeypatch.chdir(folder)
    return SAMPLE


def asked(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """The objects that the script prints."""
    printed = must_run(SCRIPT, "--data_root", "runs/sample", "--json", *arguments, cwd=folder)
    return [json.loads(line) for line in printed.splitlines()]


def ids_and_texts(root: Path) -> tuple[list[str], list[str]]:
    """The official ids and the texts of all passages, in the order of their rows."""
    collection = Collection(root / "preprocess")
    return list(map(str, collection.pids())), list(read_passage_texts(PASSAGE, root / "dataset", collection))


@pytest.mark.parametrize(
    "model, length, embeddings",
    [
        ("trained_models/star", 32, "evaluate/star/dev-query.memmap"),
        ("adore_train/models/epoch-5", 64, "evaluate/adore-star/dev.qembed.memmap"),
    ],
    ids=["STAR", "ADORE"],
)
def test_a_typed_query_is_embedded_as_the_inference_scripts_do(
    here: Path, model: str, length: int, embeddings: str
) -> None:
    collection = Collection(here / "preprocess", length)
    encoder = QueryEncoder(load_encoder(here / model), open_tokenizer(str(here / model)), "", length)
    expected = np.fromfile(here / embeddings, np.float32).reshape(len(collection.queries("dev")), -1)
    texts = read_query_texts(PASSAGE, here / "dataset", collection, "dev")
    for row, text in enumerate(texts):
        ids, _ = collection.queries("dev").batch(np.array([row]), pad_id=1)
        assert encoder.tokenize(text).tolist() == ids[0].tolist()
        np.testing.assert_allclose(encoder.embed(text)[0], expected[row], rtol=1e-4, atol=1e-4)
    cut = QueryEncoder(load_encoder(here / model), open_tokenizer(str(here / model)), "query: ", 8)
    assert len(cut.tokenize(texts[0])) == 8
    assert cut.tokenize(texts[0])[1:3].tolist() == encoder.tokenize("query: a")[1:3].tolist()


@pytest.mark.parametrize(
    "flags, run",
    [((), "star"), (("--query_model", SAMPLE / "adore_train" / "models" / "epoch-5"), "adore-star")],
    ids=["STAR", "ADORE"],
)
def test_the_answer_is_the_run_of_the_inference_script(folder: Path, flags: tuple[object, ...], run: str) -> None:
    root = folder / SAMPLE
    ids, texts = ids_and_texts(root)
    collection = Collection(root / "preprocess")
    queries = read_query_texts(PASSAGE, root / "dataset", collection, "dev")
    ranked = np.loadtxt(root / "evaluate" / run / "dev.rank.tsv", dtype=np.int64)
    scores = np.load(root / "evaluate" / run / "dev.score.npy")
    for row in range(3):
        [answer] = asked(folder, "--query", queries[row], "--topk", 20, *flags)
        [ranking] = answer["rankings"]
        rows = ranked[ranked[:, 0] == row, 1][:20]
        passages = ranking["passages"]
        assert [passage["rank"] for passage in passages] == list(range(1, 21))
        np.testing.assert_allclose([passage["score"] for passage in passages], scores[row, :20], rtol=1e-4, atol=1e-3)
        if np.diff(scores[row, :21]).max() < -1e-3:  # no near ties
            assert [passage["pid"] for passage in passages] == [ids[of] for of in rows]
        for passage in passages:
            assert passage["text"] == texts[ids.index(passage["pid"])]
            assert "other_rank" not in passage


def test_judged_passages_are_marked_by_text_and_by_id(folder: Path) -> None:
    root = folder / SAMPLE
    collection = Collection(root / "preprocess")
    ids, _ = ids_and_texts(root)
    for mode, grade in (("dev", 1), ("test", 3)):
        [text, *_] = read_query_texts(PASSAGE, root / "dataset", collection, mode)
        qid, relevant = str(collection.qids(mode)[0]), ids[collection.relevant(mode)[0][0]]
        [by_text] = asked(folder, "--query", f"  {text.upper()} ", "--topk", 300)
        [by_id] = asked(folder, "--mode", mode, "--qid", qid, "--topk", 300)
        for answer in (by_text, by_id):
            assert answer["known"] == {"mode": mode, "qid": qid, "relevant": [relevant]}
            graded = {hit["pid"]: hit["grade"] for hit in answer["rankings"][0]["passages"] if hit["grade"] is not None}
            assert graded == {relevant: grade}
        [elsewhere] = asked(folder, "--query", text, "--mode", "train")
        assert elsewhere["known"] is None


def test_two_models_show_each_other_s_ranks(folder: Path) -> None:
    adore = SAMPLE / "adore_train" / "models" / "epoch-5"
    [answer] = asked(folder, "--query", "city in italy", "--compare_query_model", adore)
    star, after = (ranking["passages"] for ranking in answer["rankings"])
    assert [ranking["model"] for ranking in answer["rankings"]] == [str(SAMPLE / "trained_models" / "star"), str(adore)]
    [deep] = asked(folder, "--query", "city in italy", "--topk", DEPTH, "--max_query_length", 64)
    [deep_after] = asked(folder, "--query", "city in italy", "--topk", DEPTH, "--query_model", adore)
    for hits, other in ((star, deep_after), (after, deep)):
        assert len(hits) == 10
        rank = {hit["pid"]: hit["rank"] for hit in other["rankings"][0]["passages"]}
        assert [hit["other_rank"] for hit in hits] == [rank.get(hit["pid"]) for hit in hits]
    assert star != after
    embeddings = SAMPLE / "evaluate" / "star" / "passages.memmap"
    [same] = asked(folder, "--query", "city in italy", "--compare_embeddings", embeddings)
    assert same["rankings"][0]["passages"] == same["rankings"][1]["passages"]


def test_a_compressed_index_is_built_once(folder: Path, tmp_path: Path) -> None:
    index = ("--index_factory", "SQ8", "--index_path", tmp_path / "SQ8.index")
    [exact] = asked(folder, "--query", "city in italy")
    for flags in (index, index[2:]):
        [answer] = asked(folder, "--query", "city in italy", *flags)
        one, other = (ranked["rankings"][0]["passages"] for ranked in (exact, answer))
        assert one[0]["pid"] == other[0]["pid"]
        assert one[0]["score"] == pytest.approx(other[0]["score"], rel=0.01)


def piped(content: bytes) -> TextIOWrapper:
    """A standard input with this content."""
    return TextIOWrapper(BytesIO(content), encoding="utf-8")


def test_queries_that_are_not_utf_8(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Piped, as a flag, and typed: Python hands on each byte that it cannot decode as half of a surrogate pair."""
    monkeypatch.setattr("sys.stdin", piped(b"lake\nM\xfcnchen\n"))
    complaint = refused(SCRIPT, "--data_root", "runs/sample", "--json", capsys=capsys)
    assert complaint == "error: standard input, line 2: not UTF-8 text (byte 1 of the line)"
    complaint = refused(SCRIPT, "--data_root", "runs/sample", "--query", "M\udcfcnchen", capsys=capsys)
    assert complaint == r"error: the query 'M\udcfcnchen' is not UTF-8 text"
    typed = iter(["M\udcfcnchen", "lake", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    call_script(SCRIPT, "--data_root", "runs/sample", "--topk", 1)
    printed = capsys.readouterr()
    assert r"error: the query 'M\udcfcnchen' is not UTF-8 text" in printed.err
    assert re.findall(r"^   1  \d+", printed.out, re.MULTILINE) and not list(typed)  # the next one is answered


def test_a_mode_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_without(["torch"], SCRIPT, "--data_root", "runs/sample", "--mode", "tset", "--query", "x", cwd=folder)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith("has no queries of tset; there are dev, lead, test, train")


def test_piped_queries_give_an_object_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", piped("\ufeffcity in italy\n\nlake\tin africa\r\n".encode()))
    answers = asked(folder)
    assert [answer["query"] for answer in answers] == ["city in italy", "lake in africa"]


def test_typed_queries_end_at_an_empty_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for lines in (["city in italy", "river", ""], ["city in italy", "river"]):  # then Ctrl-D
        typed: Iterator[str] = iter(lines)

        def read(prompt: str, typed: Iterator[str] = typed) -> str:
            assert prompt == "query> "
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("sys.stdin", StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", read)
        call_script(SCRIPT, "--data_root", "runs/sample", "--topk", 2)
        printed = capsys.readouterr().out
        assert printed.startswith("Searching 300 passages, runs/sample/passage/trained_models/star on ")
        assert len(re.findall(r"^   1  \d+  -?\d+\.\d{4}", printed, re.MULTILINE)) == 2
        assert not list(typed)


def test_without_texts_ids_and_scores_are_shown(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocess = folder / SAMPLE / "preprocess"
    root = tmp_path / "passage"
    (root / "evaluate").mkdir(parents=True)
    (root / "evaluate" / "star").symlink_to(folder / SAMPLE / "evaluate" / "star")
    (root / "trained_models").symlink_to(folder / SAMPLE / "trained_models")
    flags = ("--data_root", tmp_path, "--preprocess_dir", preprocess, "--query", "city in italy")
    with caplog.at_level(logging.WARNING):
        [line] = must_run(SCRIPT, *flags, "--json", cwd=folder).splitlines()
        printed = must_run(SCRIPT, *flags, cwd=folder)
    assert caplog.text.count("ids and scores are shown without texts") == 2
    [ranking] = json.loads(line)["rankings"]
    assert [hit["text"] for hit in ranking["passages"]] == [None] * 10
    assert len(printed.splitlines()) == 2 + 2 + 10 + 1


def test_a_terminal_gets_no_control_characters() -> None:
    hits = [
        Hit(1, "D1", 2.5, "http://a\nwide " + "word " * 40 + "\x1b[31m\u202e", 2, 3),
        Hit(2, "D2", 1.0, "", None, None),
        Hit(3, "D3", 0.5, "x" * 2000, 0, 3),
        Hit(4, "D4", 0.25, None, 0, 1),
    ]
    known = KnownQuery("dev", "7", "which\x1b]0;", {1: 2, 2: 0})
    answer = Answer(known.text, known, ["D1"], [Ranking("a\x07", 0.1, hits), Ranking("b", 0.2, hits)], DEPTH)
    text = render_text(answer, 60)
    assert text.replace("\n", "").isprintable()
    assert max(map(len, text.splitlines())) <= 60
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[0] == "which ]0;: dev query 7, 1 passage judged relevant"
    first, second = (place for place, line in enumerate(lines) if line.endswith(" s"))
    assert lines[first + 1] == "   1  D1  2.5000  relevant (grade 2)  ▼ now 3"
    assert lines[second + 1] == "   1  D1  2.5000  relevant (grade 2)  ▲ was 3"
    shown = [line for line in lines if re.match("   [234]  ", line)]
    assert shown == [
        "   2  D2  1.0000  now below 100",
        "   3  D3  0.5000  not relevant (grade 0)",
        "   4  D4  0.2500  not relevant (grade 0)  ▲ now 1",
        "   2  D2  1.0000  was below 100",
        "   3  D3  0.5000  not relevant (grade 0)",
        "   4  D4  0.2500  not relevant (grade 0)  ▼ was 1",
    ]


def test_prompt_of_the_queries_is_that_of_their_tokens(tmp_path: Path) -> None:
    assert Collection(tmp_path).find_query_prompt() == ""
    meta = {"type": "int32", "total_number": 1, "embedding_size": 8}
    (tmp_path / "dev-query_meta").write_text(json.dumps(meta))
    (tmp_path / "passages_meta").write_text(json.dumps(meta | {"prompt": "passage: "}))
    assert Collection(tmp_path).find_query_prompt() == ""
    (tmp_path / "train-query_meta").write_text(json.dumps(meta | {"prompt": "query: "}))
    assert Collection(tmp_path).find_query_prompt() == "query: "


STAR = str(SAMPLE / "trained_models" / "star")
ADORE = str(SAMPLE / "adore_train" / "models" / "epoch-5")
EMBEDDINGS = str(SAMPLE / "evaluate" / "star" / "passages.memmap")


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (("--model_dir", ADORE), f"{EMBEDDINGS}: was not made by {ADORE}"),
        (("--model_dir", ADORE, "--query_model", STAR), f"{EMBEDDINGS}: was not made by {ADORE}"),
        (("--embeddings", "nowhere"), "nowhere: no such file or folder; star/inference.py writes it"),
        (("--topk", 301), "cannot return the 301 best of 300 documents"),
        (("--mode", "dev", "--qid", "nobody"), "has no dev query with the id 'nobody'"),
        (("--qid", "1"), "--qid needs --mode"),
        (("--mode", "dev", "--qid", "1", "--query", "x"), "--query and --qid exclude each other"),
        (("--query", " "), "--query is empty"),
        (("--compare_model_dir", ADORE), "--compare_model_dir needs --compare_embeddings"),
        (("--http", 0, "--query", "x"), "--query and --http exclude each other"),
        (("--compare_query_model", "tiny"), "was made with a tokenizer other than that of tiny"),
    ],
)
def test_what_cannot_be_searched_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], flags: tuple[object, ...], complaint: str
) -> None:
    if "tiny" in flags and not Path("tiny").exists():
        size = load_encoder(STAR).output_embedding_size
        save_tiny(Path("tiny"), output_embedding_size=size, max_position_embeddings=130)
        save_vocabulary(Path("tiny"))
    query = () if {"--query", "--qid", "--http"} & set(flags) else ("--query", "lake")
    assert complaint in refused(SCRIPT, "--data_root", "runs/sample", *flags, *query, capsys=capsys)


def test_judgements_of_other_passages_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    preprocess = shutil.copytree(folder / SAMPLE / "preprocess", tmp_path / "preprocess")
    (preprocess / "dev-qrel.tsv").write_text("0\t0\t300\t1\n")
    qid = str(Collection(preprocess).qids("dev")[0])
    flags = ("--data_root", "runs/sample", "--preprocess_dir", preprocess, "--mode", "dev", "--qid", qid)
    complaint = refused(SCRIPT, *flags, capsys=capsys)
    assert "the dev judgements name passage 300, there are 300; run preprocess.py again" in complaint


def test_packages_that_the_page_needs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load_script(SCRIPT), "find_spec", lambda name: None)
    complaint = refused(SCRIPT, "--http", 8000, capsys=capsys)
    assert complaint == "error: --http needs starlette and uvicorn: pip install starlette uvicorn"


def test_every_command_of_the_page_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page of the browser is not served: test_search_app.py does that."""
    served = []
    monkeypatch.setattr(load_script(SCRIPT), "open_port", lambda port: port)
    monkeypatch.setattr(load_script(SCRIPT), "serve_page", lambda search, port: served.append(port))
    monkeypatch.setattr(load_script(SCRIPT), "find_spec", lambda name: True)
    commands = [command for command in documented.in_document(PAGE) if command.script == SCRIPT]
    assert len(commands) > 7
    for command in commands:
        monkeypatch.setattr("sys.stdin", piped(b"lake\n"))
        call_script(SCRIPT, *takewhile(lambda word: word != "<", command.words[2:]))
    assert served == [8000]
    assert capsys.readouterr().out.count("Searching 300 passages") == len(commands) - 2
