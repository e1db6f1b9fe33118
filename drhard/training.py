"""Code that both trainings share: their records, weight decay, checks of weights and losses, TensorBoard."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from drhard import processes
from drhard.encoder import Encoder, check_finite, digest_config
from drhard.errors import InputError
from drhard.files import disk_faults
from drhard.provenance import digest_relevant
from drhard.tokens import TokenMemmap

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

DIVERGED = "start over with a lower --learning_rate or a higher --warmup_steps"


def make_record(
    model: Encoder, queries: TokenMemmap, relevant: Mapping[int, Sequence[int]], loss: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    """Return what decides the outcome of either training. Each adds its own settings and input.

    Args:
        model: with its initial weights.
        relevant: query row -> relevant document rows.
    """
    return {
        "init_path": model.fingerprint(),
        "config": digest_config(model.config),
        "queries": queries.digest(),
        "judgements": digest_relevant(relevant),
        "loss": loss.__qualname__,
    }


def choose_scale(model: Encoder, given: float | None) -> float:
    """Return the factor of the scores in the loss.

    Embeddings of length 1 have scores from -1 to 1, too close together for a softmax or a sigmoid. So their default is
    20, as in sentence-transformers' losses. The default of other encoders is 1, as published.
    """
    return given if given is not None else 20.0 if model.normalized else 1.0


def group_parameters(model: Encoder, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of ``model`` in two groups for an optimizer, with and without weight decay."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    undecayed = model.undecayed()
    plain = [parameter for name, parameter in named.items() if name in undecayed]
    decayed = [parameter for name, parameter in named.items() if name not in undecayed]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def seed_dropout(seed: int, step: int) -> None:
    """Seed the random numbers of a step, if several processes share it. Dropout is then another in each.

    The numbers depend on seed, step and process alone, so a training that resumes needs none from its checkpoint.
    """
    if processes.count() > 1:
        entropy = np.random.SeedSequence((seed, step, processes.rank()))
        torch.manual_seed(int(entropy.generate_state(1)[0]))


# Checks


class LossCheck:
    """Remembers on the device which step was the first whose loss was not finite.

    Asking the GPU in each step would make Python wait for it. So :meth:`check` is called when numbers are logged, and
    before anything is measured or written.
    """

    _NEVER = 2**62

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None  # int64

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Take note of the loss of step ``step``, counted from 1."""
        step_if_bad = torch.where(loss.detach().isfinite().all(), self._NEVER, step)
        self._first = step_if_bad if self._first is None else torch.minimum(self._first, step_if_bad)

    def check(self) -> None:
        """Raise InputError if the loss of a step was not finite."""
        if self._first is not None and (step := int(self._first)) < self._NEVER:
            raise InputError(f"step {step}: the loss is not finite; {DIVERGED}")


def check_trained(model: nn.Module, step: int) -> None:
    """Raise InputError if a weight of ``model`` is not finite after step ``step``, counted from 1."""
    check_finite(model, f"step {step}", DIVERGED)


def warn_of_long_warmup(warmup_steps: int, steps: int) -> None:
    """Warn if the learning rate is still rising when a training of ``steps`` updates ends."""
    if warmup_steps >= steps:
        log.warning(
            "the training ends after %d steps and its warm-up takes %d, so the learning rate never reaches its "
            "maximum; lower --warmup_steps",
            steps,
            warmup_steps,
        )


# TensorBoard


class Events(SummaryWriter):
    """The events of a training in ``folder``. Events of an earlier run after step ``done`` are hidden.

    Raises:
        InputError: the disk is full; the methods raise it too.
    """

    def __init__(self, folder: str | Path, done: int):
        _leave_errors_to_the_writer()
        self._folder = Path(folder)
        with self.faults():
            super().__init__(str(folder), purge_step=done + 1 if done else 0)

    def faults(self) -> AbstractContextManager[None]:
        """Raise an InputError in place of the block's error if the disk is full."""
        return disk_faults(self._folder)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of ``step``."""
        with self.faults():
            for name, value in values.items():
                self.add_scalar(name, value, step)
            self.flush()

    def close(self) -> None:
        """Write the waiting events and close the file."""
        with self.faults():
            super().close()


def _leave_errors_to_the_writer() -> None:
    """Print no traceback of TensorBoard's thread. The next call of its writer raises the same error."""
    report = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            report(arguments)

    threading.excepthook = hook
