"""Hard negatives of some ranks and below a margin: mined by both retrievers and by star/train.py, and trained with."""

import json
from pathlib import Path

from drhard.errors import InputError
from drhard.qrels import read_relevant
from drhard.runs import read_run

import numpy as np
import pytest
from helpers import call_script, must_run, parse_flags, refused, run_without, save_tiny, write_collection
from safetensors.numpy import load_file

# star/prepare_hardneg.py, on the reference input

RETRIEVERS = {
    "bm25": ["--retriever", "bm25"],
    "dense": ["--max_query_length", 24, "--max_doc_length", 60, "--no_cuda"],
}
EXTRA = 10  # passages in the run behind the last rank


def read_hard(path: Path) -> dict[int, list[int]]:
    return {int(query): rows for query, rows in json.loads(path.read_text()).items()}


def prepare(preprocessed: Path, folder: Path, retriever: str, *flags: object) -> str:
    common = ["--data_type", "passage", "--mode", "train", "--output_dir", folder]
    return must_run("star/prepare_hardneg.py", *common, *RETRIEVERS[retriever], *flags, cwd=preprocessed)


@pytest.mark.parametrize(
    ("retriever", "first", "last", "margin"),
    [
        *((retriever, 4, 20, None) for retriever in RETRIEVERS),
        *((retriever, 1, 30, 0) for retriever in RETRIEVERS),
        ("bm25", 3, 30, 0.05),
        ("dense", 3, 30, 1e-5),  # the scores of this model hardly differ
    ],
)
def test_prepare_hardneg_keeps_what_the_run_and_its_scores_say(
    preprocessed: Path, tmp_path: Path, retriever: str, first: int, last: int, margin: float | None
) -> None:
    """The run itself has its published form: topk + 10 passages, relevant ones too."""
    flags = [] if margin is None else ["--relative_margin", margin]
    flags += ["--topk", last] if first == 1 else ["--negative_ranks", f"{first}-{last}"]
    printed = prepare(preprocessed, tmp_path / "out", retriever, *flags)
    said = f"ranks {first}-{last}" + ("" if margin is None else f", margin {float(margin)}")
    assert f"Mining {last - first + 1} hard negatives ({said}) for each " in printed
    hard = read_hard(tmp_path / "out" / "hard.json")
    relevant = read_relevant(preprocessed / "data/passage/preprocess/train-qrel.tsv")
    run = {query: rows for query, rows, *_ in read_run(tmp_path / "out" / "train.rank.tsv")}
    scores = np.load(tmp_path / "out" / "train.score.npy")
    assert scores.shape == (len(hard), last + EXTRA)
    assert max(map(len, relevant.values())) <= EXTRA  # so the run holds all that the search found
    removed = 0
    for query, chosen in hard.items():
        found = dict(zip(run.get(query, []), scores[query].tolist(), strict=False))
        ranked = expected = [row for row in found if row not in relevant[query]][first - 1 : last]
        if margin is not None:
            lowest = min(found.get(row, -np.inf) for row in relevant[query])
            expected = [row for row in ranked if found[row] <= lowest - abs(lowest) * margin]
        assert chosen == expected, query
        removed += len(ranked) - len(expected)
    assert any(hard.values()) and (removed > 0) == (margin is not None)


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_ranks_from_1_are_topk(preprocessed: Path, tmp_path: Path, retriever: str) -> None:
    """Byte for byte."""
    outputs = []
    for flags in (["--topk", 20], ["--negative_ranks", "1-20"]):
        prepare(preprocessed, tmp_path, retriever, *flags)
        outputs.append([(tmp_path / name).read_bytes() for name in ("hard.json", "train.rank.tsv", "train.score.npy")])
    assert outputs[0] == outputs[1]


def test_what_the_margin_removed_is_told_without_torch(preprocessed: Path, tmp_path: Path) -> None:
    flags = ["--data_type", "passage", "--data_root", preprocessed / "data", "--mode", "train", "--retriever", "bm25"]
    flags += ["--output_dir", tmp_path]
    run_without(("torch",), "star/prepare_hardneg.py", *flags, "--topk", 30)
    before = read_hard(tmp_path / "hard.json")
    ended = run_without(("torch",), "star/prepare_hardneg.py", *flags, "--topk", 30, "--relative_margin", 0.1)
    assert ended.returncode == 0, ended.stderr
    after = read_hard(tmp_path / "hard.json")
    total, kept = (sum(map(len, hard.values())) for hard in (before, after))
    none = sum(not rows for rows in after.values())
    assert (
        f"INFO: the relative margin removed {total - kept} of {total} hard negatives "
        f"({100 * (total - kept) / total:.1f} %); {none} of {len(after)} queries keep none\n"
    ) in ended.stderr


# star/train.py, with a small model

DOCUMENTS, QUERIES = 20, 6
LENGTHS = ["--max_query_length", 8, "--max_doc_length", 16]
CHOSEN = ["--negative_ranks", "2-8", "--relative_margin", 0]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write_collection(tmp_path / "preprocess", DOCUMENTS, QUERIES)
    save_tiny(tmp_path / "init")
    return tmp_path


def training(collection: Path, name: str, *more: object) -> list[object]:
    """The flags of two steps of star/train.py."""
    places = ["--preprocess_dir", collection / "preprocess", "--init_path", collection / "init"]
    places += ["--output_dir", collection / name, "--logging_dir", collection / f"{name}.log"]
    numbers = ["--per_device_train_batch_size", 3, "--max_steps", 2, "--warmup_steps", 0, "--learning_rate", 1e-2]
    return ["--do_train", *LENGTHS, *places, *numbers, "--no_cuda", *more]


def mining(collection: Path, *more: object) -> list[object]:
    """The flags of star/prepare_hardneg.py to mine as such a training does."""
    places = ["--data_type", "passage", "--preprocess_dir", collection / "preprocess", "--model_dir"]
    places += [collection / "init", "--output_dir", collection / "mined"]
    return [*places, *LENGTHS, "--mode", "train", "--no_cuda", *more]


@pytest.mark.parametrize("negatives", ["star", "hard"])
def test_a_training_leaves_out_queries_that_keep_no_negative(
    collection: Path, negatives: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it mines itself or reads what prepare_hardneg.py mined; both end with the same weights."""
    call_script("star/prepare_hardneg.py", *mining(collection, *CHOSEN))
    hard = read_hard(collection / "mined" / "hard.json")
    kept = sum(map(bool, hard.values()))
    assert 1 < kept < QUERIES
    given = ["--hardneg_path", collection / "mined" / "hard.json"]
    weights = []
    for name, flags in (("own", CHOSEN), ("given", given)):
        caplog.clear()
        call_script("star/train.py", *training(collection, name, "--negatives", negatives, *flags))
        assert f"Training on {kept} queries" in capsys.readouterr().out
        left_out = f"the training leaves out {QUERIES - kept} queries without a hard negative"
        assert [message for message in caplog.messages if "leaves out" in message] == [left_out]
        weights.append(load_file(collection / name / "model.safetensors"))
    assert (collection / "own" / "hard.json").read_bytes() == (collection / "mined" / "hard.json").read_bytes()
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name])


def test_a_training_without_any_negative_is_refused(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written that a later call would take for negatives; with another margin, it trains."""
    refusal = "error: no query has a hard negative (ranks 2-8, margin 0.99); give a lower --relative_margin or other "
    flags = ["--negative_ranks", "2-8", "--relative_margin"]
    for script, arguments in (
        ("star/train.py", training(collection, "own", *flags, 0.99)),
        ("star/prepare_hardneg.py", mining(collection, *flags, 0.99)),
    ):
        assert refused(script, *arguments, capsys=capsys).startswith(refusal)
    assert not list(collection.rglob("hard.json"))
    call_script("star/train.py", *training(collection, "own", *flags, 0))
    assert (collection / "own" / "model.safetensors").exists()
    empty = collection / "hard.json"
    empty.write_text(json.dumps({query: [] for query in range(QUERIES)}))
    message = refused("star/train.py", *training(collection, "given", "--hardneg_path", empty), capsys=capsys)
    assert message == f"error: {empty}: no query has a hard negative"


def test_ranks_beyond_the_collection_are_refused(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is encoded. Passage 20 is relevant, so there are 19 ranks."""
    for script, arguments in (
        ("star/train.py", training(collection, "own")),
        ("star/prepare_hardneg.py", mining(collection)),
    ):
        message = refused(script, *arguments, "--negative_ranks", "5-20", capsys=capsys)
        assert message == ("error: cannot mine 20 negatives (--topk or --negative_ranks) from 20 passages; lower it")
    assert not list(collection.rglob("*.memmap.json"))
    call_script("star/prepare_hardneg.py", *mining(collection, "--negative_ranks", "5-19"))
    assert {len(rows) for rows in read_hard(collection / "mined" / "hard.json").values()} == {15}


def test_ranks_and_topk_do_not_go_together(collection: Path) -> None:
    with pytest.raises(InputError, match="^--topk N is the same as --negative_ranks 1-N; omit one of the two$"):
        parse_flags("star/prepare_hardneg.py", *mining(collection, "--topk", 200, "--negative_ranks", "1-200"))
