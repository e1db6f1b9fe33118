"""Measure a model on the queries of a split during its training, and keep the best.

This module is light to import, so a wrong measure or split is reported before torch is loaded.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import read_object
from drhard.metrics import measure_queries, parse_measures
from drhard.qrels import read_grades
from drhard.runs import Ranking

import numpy as np

BEST_FOLDER = "best"
EVALUATION_FILE = "evaluation.json"  # beside the best model: what it scored


class ValidationFlags(Protocol):
    """The flags of a validation: of star/train.py, or in the settings of ADORE."""

    eval_split: str | None
    metric: str
    early_stopping_patience: int | None


class Evaluation(NamedTuple):
    """The value of the measure after a number of steps; 0 is the model before the training."""

    step: int
    value: float


class Validation:
    """The queries of a split and their judgements, to measure a model with during its training.

    Args:
        passages: their number.

    Attributes:
        name: the measure, as ir_measures writes it, such as ``RR@10``.
        depth: passages to retrieve for each query.
        queries: the tokens of the split's queries.
        evaluations: those made so far, in order.

    Raises:
        InputError: the measure does not exist or has no cut, or the judgements are missing or damaged.
    """

    def __init__(self, flags: ValidationFlags, collection: Collection, passages: int):
        assert flags.eval_split is not None
        self.split, self.patience = flags.eval_split, flags.early_stopping_patience
        [self._measure] = parse_measures([flags.metric])
        self.name = str(self._measure)
        if "cutoff" not in self._measure.params:
            raise InputError(f"--metric {flags.metric}: give a measure with a cut, such as RR@10 or nDCG@10")
        self.depth = min(int(self._measure.params["cutoff"]), passages - len(collection.left_out))
        self.queries = collection.queries(self.split)
        collection.relevant(self.split, passages)  # refuses rows that do not exist
        self._judged = read_grades(collection.qrels_path(self.split))
        self.evaluations: list[Evaluation] = []
        self._kept: Evaluation | None = None  # that of the best model, or of the model before the training

    @classmethod
    def from_flags(cls, flags: ValidationFlags, collection: Collection, passages: int) -> "Validation | None":
        """Return the validation that ``flags`` ask for; None without ``--eval_split``."""
        return cls(flags, collection, passages) if flags.eval_split else None

    def measure(self, rows: np.ndarray) -> float:
        """Return the mean of the measure over all judged queries, as trec_eval.py computes it for a run.

        Args:
            rows: (Q, depth) passage rows of each query row, best first; -1 at the end of a shorter list.
        """
        run = (
            Ranking(str(query), [str(row) for row in found.tolist() if row >= 0], [], [])
            for query, found in enumerate(rows)
        )
        return float(measure_queries([self._measure], run, self._judged)[self.name].mean())

    def resume(self, evaluations: Iterable[tuple[int, float]], folder: Path) -> None:
        """Take over the evaluations that a stopped training made.

        Its best model may be of a later step than the state that it resumes from. It stays the best until another
        model scores more.

        Args:
            folder: the folder of the training.

        Raises:
            InputError: the file beside the best model is damaged.
        """
        self.evaluations = [Evaluation(step, value) for step, value in evaluations]
        told = [self.best] if self.evaluations else []
        path = folder / BEST_FOLDER / EVALUATION_FILE
        if path.exists():
            content = read_object(path, {"step": int, "value": float}, "delete the folder")
            told.append(Evaluation(content["step"], content["value"]))
        self._kept = max(told, key=_value, default=None)

    def add(self, step: int, value: float) -> bool:
        """Note an evaluation. Return whether it is the best so far."""
        self.evaluations.append(Evaluation(step, value))
        if self._kept is not None and value <= self._kept.value:
            return False
        self._kept = self.evaluations[-1]
        return True

    @property
    def best(self) -> Evaluation:
        """The evaluation with the greatest value, the first one in a tie."""
        return max(self.evaluations, key=_value)

    @property
    def is_exhausted(self) -> bool:
        """Whether the last ``--early_stopping_patience`` evaluations brought no new best."""
        if self.patience is None or not self.evaluations:
            return False
        return len(self.evaluations) - 1 - self.evaluations.index(self.best) >= self.patience

    def notes(self) -> dict[str, dict[str, object]]:
        """Return the file that says what the best model scored: its name and its content."""
        best = self._kept
        assert best is not None
        return {EVALUATION_FILE: {"split": self.split, "measure": self.name, "value": best.value, "step": best.step}}

    def report(self, folder: Path) -> str:
        """Return a sentence that says which model is the best.

        Args:
            folder: the folder of the training.
        """
        best, first = self._kept, self.evaluations[0]
        assert best is not None
        if best.step == 0:
            return f"No evaluation beat the model before the training: {self.name} {best.value:.4f} on {self.split}"
        return (
            f"Wrote {folder / BEST_FOLDER}: the best model, {self.name} {best.value:.4f} on {self.split} after step "
            f"{best.step} ({first.value:.4f} before the training)"
        )


def _value(evaluation: Evaluation) -> float:
    return evaluation.value
