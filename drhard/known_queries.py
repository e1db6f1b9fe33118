"""Find a typed query among the queries of a collection, by its text or its id, with its judgements."""

from dataclasses import dataclass
from pathlib import Path

from drhard.collection import Collection
from drhard.dataset import list_splits
from drhard.errors import InputError
from drhard.msmarco import Corpus, find_source_file
from drhard.names import OfficialIds
from drhard.qrels import read_judgements
from drhard.texts import read_query_texts

import numpy as np


@dataclass(frozen=True)
class KnownQuery:
    """A query of the collection.

    Attributes:
        qid: its official id.
        grades: row of a judged passage -> grade; 1 and more is relevant. Empty in a mode without judgements.
    """

    mode: str
    qid: str
    text: str
    grades: dict[int, int]


class KnownQueries:
    """The queries of a collection. Each file is read on first use, and its errors are raised then.

    Args:
        dataset: the folder of the texts.
        mode: the mode in which a text is looked for; None for all with judgements, in their order.

    Raises:
        InputError: there is no such mode.
    """

    def __init__(self, corpus: Corpus, dataset: Path, collection: Collection, mode: str | None = None):
        if mode is not None and mode not in corpus.modes:
            raise InputError(f"{dataset}: has no queries of {mode}; {list_splits(corpus.modes)}")
        self._corpus, self._dataset, self._collection = corpus, dataset, collection
        self._modes = [mode] if mode else [mode for mode, files in corpus.modes.items() if files.qrels is not None]
        self._ids: dict[str, OfficialIds] = {}
        self._texts: dict[str, list[str]] = {}
        self._places: dict[str, tuple[str, int]] | None = None  # text without case and surplus blanks -> mode, row
        self._judged: dict[str, np.ndarray] = {}

    def find(self, text: str) -> KnownQuery | None:
        """Return the query with this text; case and white space do not count. None if there is none.

        Raises:
            InputError: a file of queries or judgements is damaged.
        """
        if self._places is None:
            self._places = {}
            for mode in filter(self._has_texts, self._modes):
                for row, known in enumerate(self._texts_of(mode)):
                    self._places.setdefault(_folded(known), (mode, row))
        place = self._places.get(_folded(text))
        return None if place is None else self._known(*place)

    def get(self, mode: str, qid: str) -> KnownQuery:
        """Return the query with the official id ``qid``. Raises InputError if there is none, or as :meth:`find`."""
        row = self._ids_of(mode).find(qid)
        if row < 0:
            raise InputError(f"{self._collection.folder}: has no {mode} query with the id {qid[:40]!r}")
        return self._known(mode, row)

    def _known(self, mode: str, row: int) -> KnownQuery:
        judged = self._judged_in(mode)
        grades = {int(passage): int(grade) for _, passage, grade in judged[judged[:, 0] == row]}
        return KnownQuery(mode, self._ids_of(mode).take([row])[0], self._texts_of(mode)[row], grades)

    def _has_texts(self, mode: str) -> bool:
        source = find_source_file(self._dataset, self._corpus.modes[mode].queries)
        return source is not None and self._collection.qids_path(mode).exists()

    def _ids_of(self, mode: str) -> OfficialIds:
        if mode not in self._ids:
            self._ids[mode] = self._collection.official_qids(mode)
        return self._ids[mode]

    def _texts_of(self, mode: str) -> list[str]:
        if mode not in self._texts:
            self._texts[mode] = read_query_texts(self._corpus, self._dataset, self._collection, mode)
        return self._texts[mode]

    def _judged_in(self, mode: str) -> np.ndarray:
        """Return (judgements, 3) int64: query row, passage row, grade."""
        if mode not in self._judged:
            path = self._collection.qrels_path(mode)
            judged = [(one.qid, one.pid, one.grade) for one in read_judgements(path)] if path.exists() else []
            self._judged[mode] = np.array(judged, dtype=np.int64).reshape(-1, 3)
        return self._judged[mode]


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
