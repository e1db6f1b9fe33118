"""Wrong input on purpose: exit code 2, one sentence that names the file, and nothing half-written left behind."""

import gzip
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    call_script,
    random_sequences,
    refused,
    run_script,
    save_tiny,
    save_vocabulary,
    snapshot,
    the_error,
    write_qrels,
    write_tokens,
)
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]


def refused_process(script: str, *arguments: object) -> str:
    """Run a script as a process that must refuse its input; return its sentence."""
    result = run_script(script, *arguments)
    message = the_error(result.stderr)
    assert result.returncode == 2
    return message


def new_files(folder: Path, before: dict[str, bytes]) -> set[str]:
    """The files that were written since; fails if one that was there changed or went."""
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    return set(after) - set(before)


# preprocess.py

PASSAGES = "10\tthe rhine is a river\n30\tit ends in the sea\n20\ta star is plasma\n"
QUERIES = "7\twhere is the rhine\n5\twhat is a star\n6\tnot judged\n"
QRELS = "5\t0\t20\t1\n7\t0\t10\t1\n"
COLLECTION = "dataset/collection.tsv"
TRAIN_QUERIES = "dataset/queries.train.tsv"
TRAIN_QRELS = "dataset/qrels.train.tsv"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A root with a passage collection, its train queries and a vocabulary."""
    folder = tmp_path / "passage"
    (folder / "dataset").mkdir(parents=True)
    (folder / COLLECTION).write_text(PASSAGES)
    (folder / TRAIN_QUERIES).write_text(QUERIES)
    (folder / TRAIN_QRELS).write_text(QRELS)
    save_vocabulary(tmp_path / "base")
    return tmp_path


def text(name: str, content: str | bytes) -> Damage:
    """Put ``content`` in place of a file of the data set."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def gzipped(change: Callable[[bytes], bytes]) -> Damage:
    """Pack the collection and damage the archive."""

    def damage(folder: Path) -> None:
        random = np.random.default_rng(0)
        lines = "".join(f"{number}\t{random.bytes(40).hex()}\n" for number in range(100, 3000)) + PASSAGES
        (folder / f"{COLLECTION}.gz").write_bytes(change(gzip.compress(lines.encode())))
        (folder / COLLECTION).unlink()

    return damage


def bits_flipped(content: bytes) -> bytes:
    """The archive with a block of a type that does not exist, after some that can be read."""
    parts = [gzip.compress(f"{number}\ttext\n".encode()) for number in range(1, 4)]
    return b"".join(parts) + content[:10] + b"\xff" * 50 + content[60:]


PREPROCESS_CASES = {
    "collection missing": (lambda folder: (folder / COLLECTION).unlink(), r"collection\.tsv: no such file"),
    "collection empty": (text(COLLECTION, ""), r"collection\.tsv: holds no text"),
    "too few fields": (text(COLLECTION, PASSAGES + "40 no tab\n"), r"collection\.tsv, line 4: expected"),
    "id no integer": (text(COLLECTION, "D1\ttext\n" + PASSAGES), r"collection\.tsv, line 1: the id 'D1'"),
    "duplicate id": (text(COLLECTION, PASSAGES + "30\tanother\n"), r"collection\.tsv, line 4: .*30.*line 2"),
    "id with zeros": (text(COLLECTION, PASSAGES + "030\tanother\n"), r"line 4: the id '030' .*; write 30 in all files"),
    "id of MS MARCO v2": (text(COLLECTION, PASSAGES + "msmarco_passage_00_0\tx\n"), "line 4: .* v2's ids are texts"),
    "qrels with zeros": (text(TRAIN_QRELS, "5\t0\t020\t1\n"), r"qrels\.train\.tsv, line 1: the id '020'"),
    "query id with zeros": (text(TRAIN_QUERIES, "05\tx\n"), r"queries\.train\.tsv, line 1: the id '05'"),
    "two empty texts": (
        text(COLLECTION, "8\t\n" + PASSAGES + "9\t \n"),
        r"collection\.tsv, lines 1, 5: 2 texts are empty; give --empt",
    ),
    "a second tab": (text(COLLECTION, PASSAGES + "8\tone\ttwo\n"), r"line 4: .* found text after another tab"),
    "blank text": (text(COLLECTION, PASSAGES + "40\t \u3000\n"), r"collection\.tsv, line 4: the text is empty"),
    "invalid UTF-8": (text(COLLECTION, b"10\tfine\n30\t\xff\xfe\n"), r"collection\.tsv, line 2: not UTF-8"),
    "gz cut off": (gzipped(lambda content: content[:-20]), r"collection\.tsv\.gz: damaged"),
    "gz with flipped bits": (gzipped(bits_flipped), r"collection\.tsv\.gz: damaged"),
    "gz that is none": (gzipped(lambda _: PASSAGES.encode()), r"collection\.tsv\.gz: damaged"),
    "query without tab": (text(TRAIN_QUERIES, "7\n" + QUERIES), r"queries\.train\.tsv, line 1: "),
    "query id no integer": (text(TRAIN_QUERIES, QUERIES + "x\ttext\n"), r"queries\.train\.tsv, line 4: the id 'x'"),
    "duplicate query": (text(TRAIN_QUERIES, QUERIES + "7\tagain\n"), r"queries\.train\.tsv, line 4: .*7.*line 1"),
    "blank query": (text(TRAIN_QUERIES, "5\t\n" + QUERIES), r"queries\.train\.tsv, line 1: the text is empty"),
    "query not UTF-8": (text(TRAIN_QUERIES, b"5\t\xc3\n"), r"queries\.train\.tsv, line 1: not UTF-8"),
    "no query is judged": (text(TRAIN_QUERIES, "6\ta\n"), r"queries\.train\.tsv"),
    "qrels missing": (lambda folder: (folder / TRAIN_QRELS).unlink(), r"qrels\.train\.tsv: no such file"),
    "qrels with three fields": (text(TRAIN_QRELS, QRELS + "5 0 20\n"), r"qrels\.train\.tsv, line 3: expected"),
    "qrels with a word for a grade": (text(TRAIN_QRELS, "5 0 20 yes\n"), r"qrels\.train\.tsv, line 1: the grade"),
    "unknown document": (
        text(TRAIN_QRELS, QRELS + "5\t0\t21\t1\n"),
        r"qrels\.train\.tsv, line 3: the document 21 .*collection\.tsv",
    ),
    "unknown query": (
        text(TRAIN_QRELS, QRELS + "8\t0\t20\t1\n"),
        r"qrels\.train\.tsv, line 3: the query 8 .*queries\.train\.tsv",
    ),
    "vocabulary missing": (lambda folder: (folder / "../base/vocab.json").unlink(), r"vocab\.json: no such file"),
}


@pytest.mark.parametrize("case", PREPROCESS_CASES)
def test_preprocess(source: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, complaint = PREPROCESS_CASES[case]
    damage(source / "passage")
    before = snapshot(source)
    message = refused(
        "preprocess.py",
        "--data_root",
        source,
        "--model_name_or_path",
        source / "base",
        "--threads",
        1,
        "--max_seq_length",
        16,
        "--max_query_length",
        8,
        capsys=capsys,
    )
    assert re.search(complaint, message), message
    assert not new_files(source, before)


@pytest.mark.parametrize("value", ["1", "-5", "1e3", "9" * 30, "nan"])
@pytest.mark.parametrize("flag", ["--max_seq_length", "--max_query_length", "--max_doc_character", "--threads"])
def test_preprocess_numbers(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    if flag in ("--max_doc_character", "--threads") and value == "1":
        value = "0"
    with pytest.raises(SystemExit) as ended:
        call_script("preprocess.py", f"{flag}={value}")
    assert ended.value.code == 2
    assert f"preprocess.py: error: argument {flag}: {value!r} is not a whole number from" in capsys.readouterr().err


def test_preprocess_with_a_model_that_is_none(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(source)
    message = refused("preprocess.py", "--data_root", source, "--model_name_or_path", "none/of/these", capsys=capsys)
    assert "none/of/these" in message
    assert not new_files(source, before)


@pytest.mark.parametrize(
    "line, complaint",
    [("D3\turl\ttitle", r"line 2: expected .* found 3 fields"), ("3\turl\ttitle\tbody", r"line 2: the id '3'")],
)
def test_preprocess_documents(tmp_path: Path, line: str, complaint: str) -> None:
    dataset = tmp_path / "doc" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "msmarco-docs.tsv").write_text(f"D1\turl\ttitle\tbody\n{line}\n")
    save_vocabulary(tmp_path / "base")
    before = snapshot(tmp_path)
    message = refused_process(
        "preprocess.py",
        "--data_type",
        0,
        "--data_root",
        tmp_path,
        "--model_name_or_path",
        tmp_path / "base",
        "--threads",
        1,
        "--max_seq_length",
        16,
    )
    assert re.search(r"msmarco-docs\.tsv, " + complaint, message), message
    assert not new_files(tmp_path, before)


# msmarco_eval.py and cvt_back.py


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("none.tsv", "run.tsv"), r"none\.tsv: no such file"),
        (("qrels.tsv", "none.tsv"), r"none\.tsv: no such file"),
        (("qrels.tsv", "rows.tsv"), r"rows\.tsv: none of its queries is judged in \S*qrels\.tsv"),
        (("grades.tsv", "run.tsv"), r"grades\.tsv, line 2: query 1 and document 4 have grade 0 here and 1 in line 1"),
        (("qrels.tsv", "twice.tsv"), r"twice\.tsv, line 2: query 1 has document 4 again"),
        (("qrels.tsv", "nul.tsv"), r"nul\.tsv, line 1: has the control character"),
        (("qrels.tsv", "run.tsv", "doc"), r"qrels\.tsv, line 1: the id '4'"),  # official ids are asked for
        (("short.tsv", "run.tsv"), r"short\.tsv, line 2: expected"),
        (("qrels.tsv", "short.tsv"), r"short\.tsv, line 1: query 1 has a rank 4 but 1 documents"),
        (("qrels.tsv", "bytes.tsv"), r"bytes\.tsv, line 1: not UTF-8"),
        (("qrels.tsv", "."), "is a folder; a text file is expected"),
    ],
)
def test_msmarco_eval(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "qrels.tsv": "1\t0\t4\t1\n",
        "run.tsv": "1\t4\t1\n",
        "short.tsv": "1\t0\t4\t1\n2\t0\n",
        "rows.tsv": "0\t4\t1\n",
        "grades.tsv": "1\t0\t4\t1\n1\t0\t4\t0\n",
        "twice.tsv": "1\t4\t1\n1\t4\t2\n",
        "nul.tsv": "1\t4\0\t1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes.tsv").write_bytes(b"\xff\n")
    paths = [tmp_path / name for name in arguments[:2]]
    message = refused("msmarco_eval.py", *paths, *arguments[2:], capsys=capsys)
    assert re.search(complaint, message), message


@pytest.mark.parametrize("cut", ["0", "ten", "1.5", "9" * 30])
def test_msmarco_eval_refuses_cuts_that_are_none(cut: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call_script("msmarco_eval.py", "qrels.tsv", "run.tsv", cut)
    assert ended.value.code == 2
    assert f"argument CUT: {cut!r} is not a whole number from 1" in capsys.readouterr().err


def test_msmarco_eval_says_what_run_and_judgements_do_not_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """On standard error; the published block stays to the letter."""
    (tmp_path / "qrels.tsv").write_text("\ufeff1\t0\t4\t1\n2\t0\t4\t1\n", encoding="utf-8")
    (tmp_path / "run.tsv").write_text("\ufeff1\t5\t1\n1\t4\t2\n7\t4\t1\n", encoding="utf-8")
    call_script("msmarco_eval.py", tmp_path / "qrels.tsv", tmp_path / "run.tsv", 2)
    printed = capsys.readouterr()
    bar = "#####################\n"
    assert printed.out == f"Eval Started\n{bar}MRR @2: 0.25\nQueriesRanked: 2\n{bar}"
    assert printed.err.splitlines()[-1] == (
        f"{tmp_path / 'run.tsv'}: lacks 1 of 2 judged queries, each counts as 0; 1 of its 2 queries are not judged and "
        "do not count"
    )
    assert caplog.messages == []
    (tmp_path / "run.tsv").write_text("1\t5\t1\n")
    call_script("msmarco_eval.py", tmp_path / "qrels.tsv", tmp_path / "run.tsv", 2)
    assert "none of its documents is judged" in caplog.messages[0]
    assert "too few documents for MRR@2" in caplog.messages[1]


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


CVT_BACK_CASES = {
    "no run": (lambda folder: (folder / "in/dev.rank.tsv").unlink(), r"in/dev\.rank\.tsv: no such file"),
    "a run already": (lambda folder: shutil.copytree(folder / "in", folder / "out"), r"out/dev\.rank\.tsv: .*already"),
    "no pickle": (lambda folder: (folder / "pre/pid2offset.pickle").unlink(), r"pid2offset\.pickle: no such file"),
    "damaged pickle": (
        lambda folder: os.truncate(folder / "pre/dev-qid2offset.pickle", 9),
        r"dev-qid2offset\.pickle: not a pickled",
    ),
    "pickle with code": (
        lambda folder: (folder / "pre/pid2offset.pickle").write_bytes(
            pickle.dumps({1: Command(f"touch '{folder / 'trace'}'")})
        ),
        r"pid2offset\.pickle: not a pickled",
    ),
    "unknown query": (
        lambda folder: (folder / "in/dev.rank.tsv").write_text("0\t0\t1\n5\t0\t1\n"),
        r"dev\.rank\.tsv, line 2: .*5",
    ),
    "unknown document": (
        lambda folder: (folder / "in/dev.rank.tsv").write_text("0\t0\t1\n0\t8\t2\n"),
        r"dev\.rank\.tsv, line 2: .*8",
    ),
    "a line too short": (
        lambda folder: (folder / "in/dev.rank.tsv").write_text("0\t0\n"),
        r"dev\.rank\.tsv, line 1: expected",
    ),
    "a rank twice": (
        lambda folder: (folder / "in/dev.rank.tsv").write_text("0\t0\t1\n0\t1\t1\n"),
        r"tsv, line 2: .* of rank 1",
    ),
    "a document twice": (
        lambda folder: (folder / "in/dev.rank.tsv").write_text("0\t0\t1\n0\t0\t2\n"),
        r"tsv, line 2: .* again",
    ),
    "an empty run": (lambda folder: (folder / "in/dev.rank.tsv").write_text(""), r"dev\.rank\.tsv: the run is empty"),
    "other ids": (
        lambda folder: (folder / "in/dev.rank.tsv.json").write_text('{"documents": "0", "queries": "0"}'),
        r"dev\.rank\.tsv: was made with .* other than",
    ),
    "a stamp that is none": (
        lambda folder: (folder / "in/dev.rank.tsv.json").write_text("[]"),
        r"dev\.rank\.tsv\.json: expected a JSON obj",
    ),
}


@pytest.mark.parametrize("case", CVT_BACK_CASES)
def test_cvt_back(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, complaint = CVT_BACK_CASES[case]
    for name in ("in", "pre"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/dev.rank.tsv").write_text("0\t0\t1\n")
    (tmp_path / "pre/pid2offset.pickle").write_bytes(pickle.dumps({10: 0}))
    (tmp_path / "pre/dev-qid2offset.pickle").write_bytes(pickle.dumps({7: 0}))
    damage(tmp_path)
    before = snapshot(tmp_path)
    message = refused(
        "cvt_back.py",
        "--input_dir",
        tmp_path / "in",
        "--preprocess_dir",
        tmp_path / "pre",
        "--output_dir",
        tmp_path / "out",
        "--mode",
        "dev",
        "--dataset",
        "passage",
        capsys=capsys,
    )
    assert re.search(complaint, message), message
    assert not new_files(tmp_path, before)


# The scripts with a model. Their start takes seconds, so most cases call them in this process.

PRE = "data/passage/preprocess"
MODEL = "data/passage/model"
VECTORS = "data/passage/vectors.memmap"
HARD = "data/passage/hard.json"
EMBEDDINGS = ("*/passages.memmap*", "*/passages-id.memmap", "*/dev-query*.memmap*", "*.qembed.memmap*")
TRAINING = ("*/training.json", "*/events.out.*")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small collection, a checkpoint, document vectors and hard negatives, all as they should be."""
    pre = tmp_path / PRE
    write_tokens(pre, "passages", random_sequences(12, 12, seed=0), 16)
    for mode in ("train", "dev"):
        write_tokens(pre, f"{mode}-query", random_sequences(6, 6, seed=1), 8)
        write_qrels(pre / f"{mode}-qrel.tsv", {query: [query] for query in range(6)})
    save_tiny(tmp_path / MODEL)
    for name in ("warmup", "trained_models/star"):
        shutil.copytree(tmp_path / MODEL, tmp_path / "data/passage" / name)
    np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32).tofile(tmp_path / VECTORS)
    (tmp_path / HARD).write_text(json.dumps({query: [8, 9, 10] for query in range(6)}))
    return tmp_path


def star_inference(root: Path) -> list[object]:
    return [
        "--data_type",
        "passage",
        "--data_root",
        root / "data",
        "--max_doc_length",
        16,
        "--mode",
        "dev",
        "--topk",
        5,
        "--no_cuda",
    ]


def prepare_hardneg(root: Path) -> list[object]:
    return [
        "--data_type",
        "passage",
        "--data_root",
        root / "data",
        "--max_doc_length",
        16,
        "--mode",
        "train",
        "--topk",
        3,
        "--no_cuda",
    ]


def star_train(root: Path) -> list[object]:
    return [
        "--do_train",
        "--max_query_length",
        8,
        "--max_doc_length",
        16,
        "--preprocess_dir",
        root / PRE,
        "--hardneg_path",
        root / HARD,
        "--init_path",
        root / MODEL,
        "--output_dir",
        root / "out",
        "--logging_dir",
        root / "log",
        "--per_device_train_batch_size",
        3,
        "--max_steps",
        2,
        "--no_cuda",
    ]


def adore_train(root: Path) -> list[object]:
    return [
        "--metric_cut",
        4,
        "--neg_topk",
        4,
        "--init_path",
        root / MODEL,
        "--pembed_path",
        root / VECTORS,
        "--model_save_dir",
        root / "out",
        "--log_dir",
        root / "log",
        "--preprocess_dir",
        root / PRE,
        "--num_train_epochs",
        1,
        "--per_gpu_batch_size",
        3,
    ]


def adore_inference(root: Path) -> list[object]:
    return [
        "--model_dir",
        root / MODEL,
        "--output_dir",
        root / "out",
        "--preprocess_dir",
        root / PRE,
        "--mode",
        "dev",
        "--topk",
        5,
        "--dmemmap_path",
        root / VECTORS,
        "--no_cuda",
    ]


SCRIPTS = {
    "star/inference.py": star_inference,
    "star/prepare_hardneg.py": prepare_hardneg,
    "star/train.py": star_train,
    "adore/train.py": adore_train,
    "adore/inference.py": adore_inference,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_input_is_good_before_it_is_damaged(project: Path, script: str) -> None:
    """Otherwise the cases below could be refused for another reason than theirs."""
    before = snapshot(project)
    call_script(script, *SCRIPTS[script](project))
    assert new_files(project, before)
    assert not list(project.rglob("*.partial"))


def without_weight(name: str, folder: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / folder / "model.safetensors"
        save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})

    return damage


def no_numbers(folder: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / folder / "model.safetensors"
        save_file(load_file(path) | {"norm.bias": load_file(path)["norm.bias"] * float("nan")}, path, {"format": "pt"})

    return damage


def remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def cut(name: str) -> Damage:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size - 6)


def put(name: str, content: str) -> Damage:
    def damage(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    return damage


def nothing(_: Path) -> None:
    pass


STAR = "data/passage/trained_models/star"
WARMUP = "data/passage/warmup"
LONG = {"--max_doc_length": 40}


def long_passages(root: Path) -> None:
    write_tokens(root / PRE, "passages", [[0, *[9] * 36, 2]] * 12, 40)


def long_queries(root: Path) -> None:
    write_tokens(root / PRE, "train-query", [[0, *[9] * 36, 2]] * 6, 40)


def queries_behind(root: Path, mode: str = "train") -> None:
    with open(root / PRE / f"{mode}-qrel.tsv", "a") as file:
        file.write("6\t0\t1\t1\n")


def documents_behind(root: Path, mode: str = "train") -> None:
    with open(root / PRE / f"{mode}-qrel.tsv", "a") as file:
        file.write("1\t0\t12\t1\n")


def beyond_the_vocabulary(name: str) -> Damage:
    """Row 2 of a token memmap has an id that the model does not know, as roberta-base's have for smaller models."""

    def damage(root: Path) -> None:
        count, width = json.loads((root / PRE / f"{name}_meta").read_text())["total_number"], 16
        sequences = random_sequences(count, 6, seed=3)
        sequences[2][1] = 50_000
        write_tokens(root / PRE, name, sequences, width)

    return damage


def of_another_collection(root: Path) -> None:
    """The vectors are stamped as those of other passages, as many as there are."""
    stamp = {"model": "a", "tokens": "b", "length": 16, "rows": 12, "dim": 16, "dtype": "float32"}
    (root / f"{VECTORS}.json").write_text(json.dumps(stamp))


def more_vectors(root: Path) -> None:
    np.zeros((13, 16), dtype=np.float32).tofile(root / VECTORS)


def config(folder: str, **changes: object) -> Damage:
    def damage(root: Path) -> None:
        path = root / folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


BEYOND = r"{}\.memmap, row 2: has the token id 50000, the model knows 0 to 299"

# script, damage, flags that differ, what the sentence says, files that may have been written
CASES: dict[str, tuple[str, Damage, dict[str, object], str, tuple[str, ...]]] = {
    "inference, memmap cut": ("star/inference.py", cut(f"{PRE}/passages.memmap"), {}, r"passages\.memmap: has", ()),
    "inference, no queries": (
        "star/inference.py",
        remove(f"{PRE}/dev-query.memmap"),
        {},
        r"dev-query\.memmap: no such",
        (),
    ),
    "inference, no weights": (
        "star/inference.py",
        remove(f"{STAR}/model.safetensors"),
        {},
        r"trained_models/star: ",
        (),
    ),
    "inference, a weight missing": (
        "star/inference.py",
        without_weight("norm.weight", STAR),
        {},
        r"star: the checkpoint lacks .*norm\.weight",
        (),
    ),
    "inference, no numbers": ("star/inference.py", no_numbers(STAR), {}, "not finite", ("*.memmap.json",)),
    "inference, embeddings of another size": (
        "star/inference.py",
        put("data/passage/evaluate/star/passages.memmap", "short"),
        {},
        r"passages\.memmap: has 5 ",
        EMBEDDINGS,
    ),
    "inference, topk beyond the collection": (
        "star/inference.py",
        nothing,
        {"--topk": 13},
        "13 best of 12 documents",
        EMBEDDINGS,
    ),
    "inference, no such GPU": ("star/inference.py", nothing, {"--faiss_gpus": 99}, "GPU", EMBEDDINGS),
    "inference, passages too long": ("star/inference.py", long_passages, LONG, "at most 32", EMBEDDINGS),
    "inference, weights cut": ("star/inference.py", cut(f"{STAR}/model.safetensors"), {}, r"safetensors: damaged", ()),
    "inference, passages of another vocabulary": (
        "star/inference.py",
        beyond_the_vocabulary("passages"),
        {},
        BEYOND.format("passages"),
        EMBEDDINGS,
    ),
    "inference, queries of another vocabulary": (
        "star/inference.py",
        beyond_the_vocabulary("dev-query"),
        {},
        BEYOND.format("dev-query"),
        (),
    ),
    "inference, BERT": (
        "star/inference.py",
        config(STAR, model_type="bert"),
        {},
        r"lacks the weights bert\.embeddings",
        (),
    ),
    "inference, fewer layers": (
        "star/inference.py",
        config(STAR, num_hidden_layers=1),
        {},
        "num_hidden_layers is 1, but .* have 2",
        (),
    ),
    "mining, queries of another vocabulary": (
        "star/prepare_hardneg.py",
        beyond_the_vocabulary("train-query"),
        {},
        BEYOND.format("train-query"),
        (),
    ),
    "STAR, queries of another vocabulary": (
        "star/train.py",
        beyond_the_vocabulary("train-query"),
        {},
        BEYOND.format("train-query"),
        TRAINING,
    ),
    "STAR, passages of another vocabulary": (
        "star/train.py",
        beyond_the_vocabulary("passages"),
        {"--max_steps": 9},
        BEYOND.format("passages"),
        TRAINING,
    ),
    "ADORE, queries of another vocabulary": (
        "adore/train.py",
        beyond_the_vocabulary("train-query"),
        {},
        BEYOND.format("train-query"),
        (*TRAINING, "out/training_state.pt"),
    ),
    "ADORE, documents of another collection": (
        "adore/train.py",
        of_another_collection,
        {},
        r"vectors\.memmap: was made from other texts",
        (),
    ),
    "ADORE, documents of a larger collection": (
        "adore/train.py",
        more_vectors,
        {},
        r"vectors\.memmap: holds 13 embeddings, but there are 12 passages",
        (),
    ),
    "ADORE inference, queries of another vocabulary": (
        "adore/inference.py",
        beyond_the_vocabulary("dev-query"),
        {},
        BEYOND.format("dev-query"),
        (),
    ),
    "ADORE inference, documents of another collection": (
        "adore/inference.py",
        of_another_collection,
        {},
        r"vectors\.memmap: was made from other texts",
        (),
    ),
    "ADORE inference, documents of a larger collection": (
        "adore/inference.py",
        more_vectors,
        {},
        r"vectors\.memmap: holds 13 embeddings, but there are 12 passages",
        (),
    ),
    "mining, topk beyond the collection": (
        "star/prepare_hardneg.py",
        nothing,
        {"--topk": 12},
        "12 negatives .*12 passages",
        (),
    ),
    "mining, no qrels": (
        "star/prepare_hardneg.py",
        remove(f"{PRE}/train-qrel.tsv"),
        {},
        r"train-qrel\.tsv: no such",
        (),
    ),
    "mining, qrels with a letter": (
        "star/prepare_hardneg.py",
        put(f"{PRE}/train-qrel.tsv", "0\t0\tx\t1\n"),
        {},
        r"train-qrel\.tsv, line 1: ",
        (),
    ),
    "mining, unknown document": ("star/prepare_hardneg.py", documents_behind, {}, r"train-qrel\.tsv.* 12", ()),
    "mining, a weight missing": (
        "star/prepare_hardneg.py",
        without_weight("embeddingHead.bias", WARMUP),
        {},
        r"warmup: .*embeddingHead\.bias",
        (),
    ),
    "STAR, finished model there": (
        "star/train.py",
        put("out/config.json", "{}"),
        {},
        "finished model .*--overwrite_output_dir",
        (),
    ),
    "STAR, hard negatives of other queries": (
        "star/train.py",
        put(HARD, '{"0": [8], "3": [9]}'),
        {},
        r"hard\.json: no hard negative for query 1",
        TRAINING,
    ),
    "STAR, hard negatives beyond": (
        "star/train.py",
        put(HARD, json.dumps({query: [12] for query in range(6)})),
        {},
        r"hard\.json: .*there are only 12",
        TRAINING,
    ),
    "STAR, hard negatives damaged": ("star/train.py", cut(HARD), {}, r"hard\.json: not a JSON file", TRAINING),
    "STAR, hard negatives missing": ("star/train.py", remove(HARD), {}, r"hard\.json: no such file", TRAINING),
    "STAR, no hard negative at all": (
        "star/train.py",
        put(HARD, json.dumps({query: [] for query in range(6)})),
        {},
        r"hard\.json: no query has a hard negative",
        TRAINING,
    ),
    "STAR, hard negatives without use": (
        "star/train.py",
        nothing,
        {"--negatives": "in-batch"},
        "--negatives in-batch does not use --hardneg_path",
        (),
    ),
    "STAR, hard negatives and random ones": (
        "star/train.py",
        nothing,
        {"--negatives": "random"},
        "--negatives random does not use --hardneg_path",
        (),
    ),
    "STAR, unknown document": ("star/train.py", documents_behind, {}, r"train-qrel\.tsv.* 12", TRAINING),
    "STAR, unknown query": (
        "star/train.py",
        lambda root: (queries_behind(root), put(HARD, json.dumps({query: [8] for query in range(7)}))(root)),
        {},
        r"train-qrel\.tsv.* 6",
        TRAINING,
    ),
    "STAR, no checkpoint": ("star/train.py", nothing, {"--init_path": "/none/of these"}, "none/of these: ", ()),
    "STAR, a weight missing": (
        "star/train.py",
        without_weight("roberta.embeddings.word_embeddings.weight", MODEL),
        {},
        "word_embeddings",
        (),
    ),
    "STAR, no tokens": ("star/train.py", remove(f"{PRE}/passages_meta"), {}, r"passages_meta: no such", TRAINING),
    "STAR, passages too long": ("star/train.py", long_passages, LONG, "at most 32", TRAINING),
    "ADORE, no vectors": ("adore/train.py", remove(VECTORS), {}, r"vectors\.memmap: no such file", ()),
    "ADORE, vectors cut": ("adore/train.py", cut(VECTORS), {}, r"vectors\.memmap: has", ()),
    "ADORE, unknown document": ("adore/train.py", documents_behind, {}, r"train-qrel\.tsv.* 12", ()),
    "ADORE, unknown query": ("adore/train.py", queries_behind, {}, r"train-qrel\.tsv.* 6", ()),
    "ADORE, more negatives than documents": (
        "adore/train.py",
        nothing,
        {"--neg_topk": 13},
        "13 best of 12 documents",
        TRAINING,
    ),
    "ADORE, qrels without a relevant document": (
        "adore/train.py",
        put(f"{PRE}/train-qrel.tsv", "0\t0\t1\t0\n"),
        {},
        r"train-qrel\.tsv: judges no document",
        (),
    ),
    "ADORE, queries too long": ("adore/train.py", long_queries, {"--max_seq_length": 40}, "at most 32", TRAINING),
    "ADORE, damaged state": ("adore/train.py", put("out/training_state.pt", "?"), {}, r"training_state\.pt", ()),
    "ADORE inference, no vectors": ("adore/inference.py", remove(VECTORS), {}, r"vectors\.memmap: no such file", ()),
    "ADORE inference, vectors cut": ("adore/inference.py", cut(VECTORS), {}, r"vectors\.memmap: has", ()),
    "ADORE inference, topk beyond": (
        "adore/inference.py",
        nothing,
        {"--topk": 13},
        "13 best of 12 documents",
        EMBEDDINGS,
    ),
    "ADORE inference, lengths missing": (
        "adore/inference.py",
        remove(f"{PRE}/dev-query_length.npy"),
        {},
        r"dev-query_length\.npy: no such",
        (),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scripts_with_a_model(project: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    script, damage, changes, complaint, may_stay = CASES[case]
    damage(project)
    arguments = SCRIPTS[script](project)
    for flag, value in changes.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += [flag, value]
    before = snapshot(project)
    message = refused(script, *arguments, capsys=capsys)
    assert re.search(complaint, message), message
    for name in new_files(project, before):
        assert any(fnmatch(name, pattern) for pattern in may_stay), name
        assert not name.endswith(".partial")


PROCESS_CASES: dict[str, tuple[Damage, str]] = {
    "star/train.py": (remove(HARD), r"hard\.json: no such file"),
    "adore/inference.py": (without_weight("norm.bias", MODEL), r"model: the checkpoint lacks .*norm\.bias"),
}


@pytest.mark.parametrize("script", PROCESS_CASES)
def test_scripts_with_a_model_as_processes(project: Path, script: str) -> None:
    damage, complaint = PROCESS_CASES[script]
    damage(project)
    before = snapshot(project)
    message = refused_process(script, *SCRIPTS[script](project))
    assert re.search(complaint, message), message
    assert all(any(fnmatch(name, pattern) for pattern in TRAINING) for name in new_files(project, before))


def test_star_training_must_be_asked_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(project)
    message = refused("star/train.py", *star_train(project)[1:], capsys=capsys)
    assert "--do_train" in message
    assert not new_files(project, before)
