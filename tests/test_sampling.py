"""Draws that depend on seed, epoch and query alone, uniform; masks of negatives; star/train.py with each kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drhard.collection import Collection
from drhard.sampling import Collator, Grouping, TrainingDataset
from drhard.strategies import HARD, IN_BATCH, RANDOM, STAR, STRATEGIES, AnyDocument, Example, Strategy
from drhard.tokens import PASSAGES, query_name

import numpy as np
import pytest
import torch
from helpers import call_script, random_sequences, save_tiny, write_collection, write_tokens
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

RELEVANT = {3: [10, 11, 12], 5: [20], 9: [30, 31]}
MINED = {3: [40, 41, 42, 43], 5: [50, 51, 52, 53, 54], 9: [60, 61]}


def draws(dataset: TrainingDataset, epochs: int) -> list[dict[int, Example]]:
    found = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found.append({example.query: example for example in (dataset[index] for index in range(len(dataset)))})
    return found


def test_examples_are_one_per_query_with_its_own_documents() -> None:
    for examples in draws(TrainingDataset(RELEVANT, MINED, 2, seed=0), 30):
        assert sorted(examples) == [3, 5, 9]
        for query, example in examples.items():
            assert example.positive in RELEVANT[query]
            assert len(set(example.drawn)) == 2
            assert set(example.drawn) <= set(MINED[query])


def test_draws_depend_on_seed_epoch_and_query_only() -> None:
    one = draws(TrainingDataset(RELEVANT, MINED, 2, seed=1), 20)
    again = TrainingDataset(dict(reversed(RELEVANT.items())), MINED | {8: [1, 2]}, 2, seed=1)
    again.set_epoch(13)
    for index in (2, 0, 1, 1):  # in another order, some twice
        assert again[index] == one[13][again.queries[index]]
    fewer = TrainingDataset({9: RELEVANT[9]}, {9: MINED[9]}, 2, seed=1)
    assert [epoch[9] for epoch in draws(fewer, 20)] == [epoch[9] for epoch in one]
    assert draws(TrainingDataset(RELEVANT, MINED, 2, seed=2), 20) != one
    assert len({epoch[3] for epoch in one}) > 5


def test_queries_with_equal_lists_draw_apart() -> None:
    same = {query: [1, 2, 3, 4] for query in range(40)}
    examples = draws(TrainingDataset(same, same, 1, seed=0), 1)[0].values()
    assert len({(example.positive, example.drawn) for example in examples}) > 8


def test_draws_are_uniform() -> None:
    """Counts over 6,000 epochs within 5 standard deviations of what fair draws give."""
    epochs = 6000
    examples = [epoch[3] for epoch in draws(TrainingDataset({3: RELEVANT[3]}, MINED, 2, seed=7), epochs)]
    for outcomes, chances in (
        ([example.positive for example in examples], {row: 1 / 3 for row in RELEVANT[3]}),
        ([row for example in examples for row in example.drawn], {row: 1 / 2 for row in MINED[3]}),
        (
            [(example.positive, example.drawn[0]) for example in examples],
            {(positive, hard): 1 / 12 for positive in RELEVANT[3] for hard in MINED[3]},
        ),
    ):
        for outcome, chance in chances.items():
            deviation = np.sqrt(epochs * chance * (1 - chance))
            assert abs(outcomes.count(outcome) - epochs * chance) < 5 * deviation, outcome


def test_more_negatives_than_there_are_repeat() -> None:
    example = TrainingDataset({9: [30]}, MINED, 5, seed=0)[0]
    assert len(example.drawn) == 5
    assert set(example.drawn) <= {60, 61}


def test_no_hard_negatives() -> None:
    assert TrainingDataset({9: [30]}, MINED, 0, seed=0)[0] == Example(9, 30, ())


def test_random_negatives_come_from_the_whole_collection() -> None:
    """Counts over 4,000 epochs within 5 standard deviations of what fair draws give, none twice for a query."""
    epochs, size = 4000, 12
    drawn = [epoch[5].drawn for epoch in draws(TrainingDataset(RELEVANT, AnyDocument(size), 3, seed=3), epochs)]
    assert all(len(set(rows)) == 3 for rows in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=size)
    chance = 3 / size
    assert len(counts) == size
    assert (abs(counts - epochs * chance) < 5 * np.sqrt(epochs * chance * (1 - chance))).all()


@pytest.fixture
def collator(tmp_path: Path) -> Collator:
    write_tokens(tmp_path, query_name("train"), random_sequences(4, 6, seed=0), 8)
    write_tokens(tmp_path, PASSAGES, random_sequences(20, 10, seed=1), 12)
    tokens = Collection(tmp_path, max_query_length=5, max_doc_length=9)
    return Collator(tokens, {0: [3, 4], 1: [4], 2: [7], 3: [8, 3]}, STAR, pad_id=1, grouping=Grouping(call_tokens=3))


def test_negatives_are_all_documents_that_are_not_relevant_to_the_query(collator: Collator) -> None:
    # Document 4 is query 1's positive and relevant to query 0 too; 3 is query 0's positive, relevant to 3 and
    # hard for 2; 9 is there twice and counts twice; 7 is hard for 1 and the positive of 2.
    examples = [Example(0, 3, (9,)), Example(1, 4, (7,)), Example(2, 7, (3,)), Example(3, 8, (9,))]
    batch = collator(examples)
    columns = [3, 4, 7, 8, 9, 7, 3, 9]
    expected = [[column not in relevant for column in columns] for relevant in ([3, 4], [4], [7], [8, 3])]
    assert batch["negatives"].tolist() == expected
    assert batch["negatives"].dtype == torch.bool


def test_negatives_drawn_for_a_query_are_its_own_alone() -> None:
    relevant = {0: [3, 4], 1: [4], 2: [7]}
    examples = [Example(0, 3, (9, 4)), Example(1, 4, (7, 3)), Example(2, 7, (9, 9))]
    no, yes = False, True
    own = [[no] * 3 + row for row in ([yes, no, *[no] * 4], [no, no, yes, yes, no, no], [*[no] * 4, yes, yes])]
    for strategy in (RANDOM, HARD):
        assert strategy.mask(examples, relevant).tolist() == own
    alone = [Example(0, 3, ()), Example(1, 4, ()), Example(2, 7, ())]
    # Document 4 is query 1's positive and relevant to query 0 too.
    assert IN_BATCH.mask(alone, relevant).tolist() == [[no, no, yes], [yes, no, yes], [yes, yes, no]]


def test_tensors_hold_the_tokens_of_their_rows(collator: Collator) -> None:
    examples = [Example(2, 7, (3, 9)), Example(0, 4, (5, 6))]
    batch = collator(examples)
    for part, source, rows in (
        ("query", collator.queries, [2, 0]),
        ("document", collator.documents, [7, 4, 3, 9, 5, 6]),
    ):
        ids, mask = source.batch(np.array(rows), 1)
        expected = [row[of == 1].tolist() for row, of in zip(ids, mask, strict=True)]
        assert sequences(batch[part]) == expected
    assert len(batch["document"]["groups"]) > 1


def sequences(part: dict[str, Any]) -> list[list[int]]:
    """The sequences of a part of a batch, in its order, without padding."""
    found = []
    for group in part["groups"]:
        ids, mask = group["input_ids"], group["attention_mask"]
        assert mask is None or not mask.all()
        mask = torch.ones_like(ids) if mask is None else mask
        assert mask.any(0).all() or ids.shape[1] in (5, 9)
        assert (ids[mask == 0] == 1).all()
        found += [row[of == 1].tolist() for row, of in zip(ids, mask, strict=True)]
    return [found[place] for place in part["places"].tolist()]


def test_padding_goes_to_the_maximal_lengths(tmp_path: Path, collator: Collator) -> None:
    tokens = Collection(tmp_path, max_query_length=5, max_doc_length=9)
    examples = [Example(0, 3, (9,)), Example(1, 4, (7,))]
    for chunk_size in (0, 3):
        grouping = Grouping(padding=True, chunk_size=chunk_size)
        padded = Collator(tokens, {0: [3], 1: [4]}, STAR, pad_id=1, grouping=grouping)
        wide, narrow = padded(examples), collator(examples)
        for part, width in (("query", 5), ("document", 9)):
            assert sequences(wide[part]) == sequences(narrow[part])
            assert {group["input_ids"].shape[1] for group in wide[part]["groups"]} == {width}
        assert len(wide["document"]["groups"]) == (2 if chunk_size else 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 30))
def test_groups_are_the_least_work(lengths: list[int], call_tokens: int) -> None:
    """Compared with all ways to cut the sequences, longest first."""

    def work(groups: Sequence[Sequence[int]]) -> int:
        return sum(max(group) * len(group) + call_tokens for group in groups)

    groups = Grouping(call_tokens=call_tokens).split(np.array(lengths))
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    found = [[lengths[place] for place in group] for group in groups]
    descending = sorted(lengths, reverse=True)
    assert [length for group in found for length in group] == descending
    ways = []
    for number in range(2 ** (len(lengths) - 1)):
        starts = [place + 1 for place in range(len(lengths) - 1) if number >> place & 1]
        ways.append([group.tolist() for group in np.split(descending, starts)])
    assert work(found) == min(map(work, ways))


def test_chunks_hold_so_many_sequences_of_similar_length() -> None:
    groups = Grouping(chunk_size=3).split(np.array([5, 9, 2, 7, 7, 1, 4]))
    assert [group.tolist() for group in groups] == [[1, 3, 4], [0, 6, 2], [5]]


def test_batch_without_hard_negatives(collator: Collator) -> None:
    batch = collator([Example(0, 3, ()), Example(2, 7, ())])
    assert len(sequences(batch["document"])) == 2
    assert batch["negatives"].tolist() == [[False, True], [True, False]]


def write_hard(folder: Path, content: object) -> Path:
    path = folder / "hard.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# star/train.py with the negatives of the paper's baselines

DOCUMENTS, QUERIES = 20, 6


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write_collection(tmp_path / "preprocess", DOCUMENTS, QUERIES)
    save_tiny(tmp_path / "init")
    write_hard(tmp_path, {query: [8, 9, 10, 11] for query in range(QUERIES)})
    return tmp_path


def train(collection: Path, name: str, negatives: Strategy, *more: object) -> np.ndarray:
    """Two steps of star/train.py; return the weights of the model that it writes."""
    hard = ["--hardneg_path", collection / "hard.json"] if negatives.mined else []
    call_script(
        "star/train.py",
        "--do_train",
        "--max_query_length",
        8,
        "--max_doc_length",
        16,
        "--preprocess_dir",
        collection / "preprocess",
        "--init_path",
        collection / "init",
        "--output_dir",
        collection / name,
        "--logging_dir",
        collection / f"{name}.log",
        "--negatives",
        negatives,
        "--per_device_train_batch_size",
        3,
        "--max_steps",
        2,
        "--warmup_steps",
        0,
        "--learning_rate",
        1e-2,
        "--no_cuda",
        *hard,
        *more,
    )
    return weights(collection / name)


def weights(folder: Path) -> np.ndarray:
    found = load_file(folder / "model.safetensors")
    return np.concatenate([found[name].ravel() for name in sorted(found)])


@pytest.mark.parametrize("drawn", [1, 3])
def test_each_kind_of_negatives_trains_another_model(
    collection: Path, drawn: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is drawn for a batch, and who is whose negative there, is what the kind says."""
    seen: list[list[Example]] = []
    collate = Collator.__call__
    monkeypatch.setattr(Collator, "__call__", lambda self, batch: seen.append(batch) or collate(self, batch))
    models = [weights(collection / "init")]
    for negatives in STRATEGIES.values():
        seen.clear()
        models.append(train(collection, negatives.name, negatives, "--per_query_hard_num", drawn))
        assert f"Training on 6 queries and 20 documents, negatives: {negatives}, " in capsys.readouterr().out
        assert {example.query for batch in seen for example in batch} == set(range(QUERIES))
        rows = [example.drawn for batch in seen for example in batch]
        assert {len(of) for of in rows} == {negatives.count_drawn(drawn)}
        if negatives.mined:
            assert {row for of in rows for row in of} <= {8, 9, 10, 11}
        if negatives == RANDOM:
            assert not {row for of in rows for row in of} <= {8, 9, 10, 11}
    assert all(np.isfinite(model).all() for model in models)
    for number, model in enumerate(models):
        assert not any(np.array_equal(model, other) for other in models[:number])


@pytest.mark.parametrize("workers", [["2"], ["1", "--dataloader_persistent_workers"]])
def test_processes_that_make_batches_make_the_same(collection: Path, workers: list[str]) -> None:
    """In each of three epochs, which draw other documents. The last --max_steps counts."""
    more = ["--max_steps", 6, "--per_query_hard_num", 2]
    alone = train(collection, "alone", STAR, *more)
    with_workers = train(collection, "workers", STAR, *more, "--dataloader_num_workers", *workers)
    np.testing.assert_array_equal(alone, with_workers)


def test_in_batch_draws_nothing_whatever_the_number(collection: Path) -> None:
    np.testing.assert_array_equal(
        train(collection, "one", IN_BATCH), train(collection, "two", IN_BATCH, "--per_query_hard_num", 5)
    )


@pytest.mark.parametrize("negatives", [STAR, HARD])
def test_queries_without_a_hard_negative_are_left_out(
    collection: Path, negatives: Strategy, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As if they had not been judged: the same model as without them."""
    write_hard(collection, {query: [] if query in (1, 4) else [8, 9, 10, 11] for query in range(QUERIES)})
    left_out = train(collection, "left out", negatives)
    assert "Training on 4 queries" in capsys.readouterr().out
    assert "the training leaves out 2 queries without a hard negative" in caplog.messages
    judged = (collection / "preprocess/train-qrel.tsv").read_text().splitlines(keepends=True)
    (collection / "preprocess/train-qrel.tsv").write_text("".join(line for line in judged if line[0] not in "14"))
    np.testing.assert_array_equal(left_out, train(collection, "not judged", negatives))


def test_the_papers_warm_up_trains_with_bm25s_negatives(preprocessed: Path, tmp_path: Path) -> None:
    """prepare_hardneg.py's file of the retriever BM25 is one that star/train.py --negatives hard takes."""
    root = preprocessed / "data" / "passage"
    call_script(
        "star/prepare_hardneg.py",
        "--data_type",
        "passage",
        "--data_root",
        preprocessed / "data",
        "--retriever",
        "bm25",
        "--mode",
        "train",
        "--topk",
        10,
        "--output_dir",
        tmp_path / "mined",
    )
    call_script(
        "star/train.py",
        "--do_train",
        "--max_query_length",
        24,
        "--max_doc_length",
        60,
        "--negatives",
        "hard",
        "--preprocess_dir",
        root / "preprocess",
        "--hardneg_path",
        tmp_path / "mined" / "hard.json",
        "--init_path",
        root / "warmup",
        "--per_device_train_batch_size",
        8,
        "--max_steps",
        2,
        "--output_dir",
        tmp_path / "models",
        "--logging_dir",
        tmp_path / "log",
        "--no_cuda",
    )
    assert np.isfinite(weights(tmp_path / "models")).all()
