"""Queries that are found by their text or id, with their judgements."""

from pathlib import Path

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.ids import write_ids
from drhard.known_queries import KnownQueries, KnownQuery
from drhard.msmarco import PASSAGE

import numpy as np
import pytest


@pytest.fixture
def known(tmp_path: Path) -> KnownQueries:
    """Two modes with judgements, and lead without. Files have queries that preprocess.py left out."""
    dataset, folder = tmp_path / "dataset", tmp_path / "preprocess"
    dataset.mkdir()
    folder.mkdir()
    files = {
        "train": ("9\tNobody judged me\n40\tWhere is  the Rhine?\n7\tStraße\n", (40, 7), "0\t0\t3\t1\n0\t0\t1\t0\n"),
        "dev": ("2\twhere is the rhine?\n", (2,), "0\t0\t5\t2\n"),
        "lead": ("1\tWhere does it end\n", (1,), None),
    }
    for mode, (queries, qids, judgements) in files.items():
        (dataset / PASSAGE.modes[mode].queries).write_text(queries, encoding="utf-8")
        write_ids(folder / f"{mode}-qid2offset.pickle", np.array(qids))
        if judgements is not None:
            (folder / f"{mode}-qrel.tsv").write_text(judgements)
    return KnownQueries(PASSAGE, dataset, Collection(folder))


def test_a_text_is_found_whatever_its_case_and_blanks(known: KnownQueries) -> None:
    rhine = KnownQuery("train", "40", "Where is  the Rhine?", {3: 1, 1: 0})  # also in dev, which comes later
    assert known.find(" where IS the\tRhine? ") == rhine
    assert known.find("STRASSE") == KnownQuery("train", "7", "Straße", {})
    assert known.find("Nobody judged me") is None  # preprocess.py left it out
    assert known.find("Where does it end") is None  # of another mode
    assert known.find("") is None


def test_a_query_is_found_by_its_id(known: KnownQueries) -> None:
    assert known.get("dev", "2") == KnownQuery("dev", "2", "where is the rhine?", {5: 2})
    assert known.get("lead", "1") == KnownQuery("lead", "1", "Where does it end", {})


@pytest.mark.parametrize("qid", ["9", "nobody", "-2", "²", "9" * 30, ""])
def test_an_id_that_no_query_has_is_refused(known: KnownQueries, qid: str) -> None:
    with pytest.raises(InputError, match=r"preprocess: has no dev query with the id"):
        known.get("dev", qid)


def test_what_is_missing_is_left_out_or_told(tmp_path: Path, known: KnownQueries) -> None:
    (tmp_path / "dataset" / "queries.train.tsv").unlink()
    found = known.find("where is the rhine?")
    assert found is not None and found.mode == "dev"
    with pytest.raises(InputError, match=r"queries.train.tsv: no such file"):
        known.get("train", "40")
    with pytest.raises(InputError, match=r"test-qid2offset.pickle: no such file"):
        known.get("test", "1")
