"""The queries that gain and lose most from one row to another, with their ids, ranks, documents and texts."""

from collections.abc import Sequence
from pathlib import Path

from drhard.changes import LONGEST, SHOWN, find_changes, read_texts
from drhard.ids import write_ids
from drhard.measured import MeasuredTrial
from drhard.msmarco import PASSAGE
from drhard.recipes import Measure, Table

import numpy as np
import pytest

QIDS = ["4", "2", "0", "1", "3"]
LONG = "word " * LONGEST


def table_of(folder: Path) -> Table:
    return Table(
        name="tiny",
        title="Tiny",
        source="nowhere",
        measures={"mrr": Measure("MRR@10", "dev", "RR@10")},
        ok=0.0005,
        close=0.003,
        qrels={"dev": folder / "dev-qrel.tsv"},
        rows={},
    )


def trial(ranks: Sequence[int], tops: bool = True, kept: bool = True) -> MeasuredTrial:
    """A trial with the first relevant document at ``ranks``: document 2; all others are 0 and 1."""
    values = np.array([1 / rank if 0 < rank <= 10 else 0 for rank in ranks])
    of = dict(zip(QIDS, ranks, strict=True))
    first = {qid: ["2" if rank == place else str(place % 2) for place in (1, 2)] for qid, rank in of.items()}
    return MeasuredTrial(
        1, None, {}, {"mrr": values}, {}, np.array(ranks) if kept else None, first if tops and kept else None
    )


def test_greatest_changes_come_first_with_all_seeds(tmp_path: Path) -> None:
    row = [trial([1, 2, 1, 4, 0]), trial([1, 2, 3, 4, 2], tops=False)]
    than = [trial([2, 1, 50, 4, 1])]
    judged = {tmp_path / "dev-qrel.tsv": {qid: {"2": 1, "1": 0} for qid in QIDS}}
    found = find_changes(table_of(tmp_path), (row, than), judged)
    assert (found["gain"], found["lose"], found["stay"]) == (2, 2, 1)
    assert [query["qid"] for query in found["gaining"]] == ["0", "4"]
    assert [query["qid"] for query in found["losing"]] == ["3", "2"]
    assert found["gaining"][0] == {
        "qid": "0",
        "gain": pytest.approx((1 + 1 / 3) / 2),
        "ranks": [[1, 3], [50]],
        "tops": [["2", "0"], ["1", "0"]],
        "relevant": ["2"],
    }
    assert found["losing"][0]["gain"] == pytest.approx(0.25 - 1)


def test_as_many_are_shown_as_are_worth_it(tmp_path: Path) -> None:
    count = 3 * SHOWN
    row, than = (MeasuredTrial(1, None, {}, {"mrr": np.full(count, value)}, {}) for value in (0.5, 0.25))
    found = find_changes(table_of(tmp_path), ([row], [than]), {})
    assert (found["gain"], found["lose"], found["stay"]) == (count, 0, 0)
    assert (len(found["gaining"]), found["losing"]) == (SHOWN, [])


def test_what_older_records_lack_is_none(tmp_path: Path) -> None:
    row, than = [trial([1, 1, 1, 1, 1], kept=False)], [trial([2, 1, 1, 1, 1], kept=False)]
    [query] = find_changes(table_of(tmp_path), (row, than), {})["gaining"]
    assert query == {"qid": None, "gain": 0.5, "ranks": [None, None], "tops": [None, None], "relevant": None}
    judged = {tmp_path / "dev-qrel.tsv": {qid: {"2": 1} for qid in QIDS}}
    [query] = find_changes(table_of(tmp_path), (row, than), judged)["gaining"]
    assert (query["qid"], query["relevant"]) == ("4", ["2"])  # from the judgements
    few = {tmp_path / "dev-qrel.tsv": {"4": {"2": 1}}}
    assert find_changes(table_of(tmp_path), (row, than), few)["gaining"][0]["qid"] is None


CHANGES = {
    "gaining": [{"qid": "1", "tops": [["0", "2"], None], "relevant": ["1"]}],
    "losing": [{"qid": "0", "tops": [None, None], "relevant": None}, {"qid": None, "tops": [None, None]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A preprocess folder, with the texts beside it."""
    folder, dataset = tmp_path / "passage" / "preprocess", tmp_path / "passage" / "dataset"
    folder.mkdir(parents=True)
    dataset.mkdir()
    (dataset / PASSAGE.collection).write_text(f"30\tThe first.\n12\t{LONG}\n5\tthe last\n", encoding="utf-8")
    (dataset / PASSAGE.modes["dev"].queries).write_text("8\ta query\n9\tanother\n", encoding="utf-8")
    write_ids(folder / "pid2offset.pickle", np.array([30, 12, 5]))
    write_ids(folder / "dev-qid2offset.pickle", np.array([9, 8]))
    return folder


def test_texts_are_those_of_the_rows(folder: Path) -> None:
    texts = read_texts(table_of(folder), [CHANGES])
    assert texts["queries"] == {"0": "another", "1": "a query"}
    assert texts["passages"].keys() == {"0", "1", "2"}
    assert (texts["passages"]["0"], texts["passages"]["2"]) == ("The first.", "the last")
    assert len(texts["passages"]["1"]) <= LONGEST and texts["passages"]["1"].endswith("word …")


def test_texts_that_are_not_there_are_not_missed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = folder.parent / "dataset"
    for missing in (PASSAGE.collection, PASSAGE.modes["dev"].queries):
        (dataset / missing).rename(dataset / "elsewhere")
        assert read_texts(table_of(folder), [CHANGES]) == {}
        (dataset / "elsewhere").rename(dataset / missing)
    assert read_texts(table_of(folder.parent), [CHANGES]) == {}
    assert not caplog.messages


def test_texts_of_another_collection_are_not_shown(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    beyond = {"gaining": [{"qid": "1", "tops": [["3"], None], "relevant": None}], "losing": []}
    assert read_texts(table_of(folder), [beyond]) == {}
    assert "fewer queries or passages than were measured; the report of tiny has no texts" in caplog.text
