"""The settings of ADORE. Each number is declared once: its range, default and help make the flag of adore/train.py too.

This module is light to import, so a mistyped flag is reported before torch is loaded.
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from drhard.numbers import COUNT, EPSILON, NATURAL, NORM, RATE, SCALE, SEED, Range
from drhard.trainer_flags import SCALE_HELP, SPLIT, VALIDATION, Flag, check_needs


def setting(flag: Flag) -> Any:
    """Return a field that is also a flag, of the same name."""
    return field(default=flag.default, metadata={"flag": flag})


def number(numbers: Range, default: float | None, help: str, needs: str = "") -> Any:
    """Return a field of a number that is also a flag, of the same name."""
    return setting(Flag(numbers, default, help, needs=needs))


@dataclass(frozen=True)
class _Settings:
    """The base of the settings. Making some raises InputError if a number is out of its range."""

    def __post_init__(self) -> None:
        for name, flag in self.flags().items():
            if isinstance(flag.kind, Range) and getattr(self, name) is not None:
                flag.kind.check(name, getattr(self, name))

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """Return the flags of these settings, by their names without dashes."""
        return {one.name: one.metadata["flag"] for one in fields(cls) if "flag" in one.metadata}

    @classmethod
    def from_flags(cls, flags: Namespace, **others: Any) -> Self:
        """Make settings from parsed ``flags``, and from ``others`` that are no flags.

        Raises:
            InputError: a flag does nothing without another.
        """
        check_needs(flags, cls.flags())
        return cls(**{one.name: getattr(flags, one.name) for one in fields(cls) if hasattr(flags, one.name)}, **others)


@dataclass(frozen=True)
class AdoreSettings(_Settings):
    """The settings that decide the outcome of a training. A training resumes only with the same settings."""

    metric_cut: int | None = number(COUNT, None, "MRR counts ranks beyond this as 0 (none: no cut)")
    neg_topk: int = number(COUNT, 200, "documents retrieved for a query in each step")
    per_gpu_batch_size: int = number(COUNT, 32, "queries in a step")
    gradient_accumulation_steps: int = number(COUNT, 1, "steps for one update")
    learning_rate: float = number(RATE, 5e-6, "learning rate at the end of the warm-up")
    weight_decay: float = number(RATE, 0.01, "decay of weights, except biases and LayerNorms inside RoBERTa")
    adam_epsilon: float = number(EPSILON, 1e-8, "epsilon of AdamW")
    max_grad_norm: float = number(NORM, 1.0, "norm to clip the gradient at")
    warmup_steps: int = number(NATURAL, 2000, "updates of the warm-up")
    num_train_epochs: int = number(COUNT, 6, "epochs")
    score_scale: float | None = number(SCALE, None, SCALE_HELP)
    seed: int = number(SEED, 42, "seed of dropout and of the order of the queries")
    eval_split: str | None = setting(VALIDATION["eval_split"])
    metric: str = setting(VALIDATION["metric"])
    eval_steps: int | None = number(COUNT, None, "steps between two evaluations (none: after each epoch)", needs=SPLIT)
    early_stopping_patience: int | None = setting(VALIDATION["early_stopping_patience"])


@dataclass(frozen=True)
class AdoreOutput(_Settings):
    """Where a training writes, and how often.

    Attributes:
        model_save_dir: the folder for ``epoch-N`` after each epoch, and for the state of the training.
        log_dir: the folder for TensorBoard's events.
        tokenizer_from: the folder of the checkpoint to copy tokenizer files from into each checkpoint.
        logging_steps: the numbers of an event are means over these steps.
        state_seconds: between two saves of the state, so that a crash of the machine costs little.
    """

    model_save_dir: Path
    log_dir: Path
    tokenizer_from: Path
    save_steps: int = number(COUNT, 5_000_000, "steps between two additional checkpoints, checkpoint-STEP")
    logging_steps: int = number(COUNT, 100, "steps between two events of TensorBoard")
    state_seconds: float = 600
