"""Processes that share work, for tests: forked from this one, which has imported everything, so they start at once.

torchrun starts its processes anew, which takes seconds. To the project these look the same: they have the same
variables, and the store of their run is in the process that started them.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import drhard.backends
import drhard.embeddings
import drhard.parts
from drhard import commands, processes
from drhard.exact import ExactIndex
from drhard.training import LossCheck

import pytest
import torch
from helpers import given
from torch.distributed import TCPStore

STORES: list[TCPStore] = []  # one for each run, kept until the tests end
SMALL = 7  # documents in a block and in a window: a few of each in a collection of a test


def start_processes(count: int, work: Callable[[], object], log: Path, silence: float = 300) -> list[int]:
    """Fork processes that run ``work`` and share it. What they print goes to files in ``log``. Return their ids.

    Args:
        silence: seconds until a killed process counts as dead.
    """
    log.mkdir(parents=True, exist_ok=True)
    STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    started = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": STORES[-1].port}
            os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            processes.SILENCE, processes.BEAT = silence, 0.1
            os._exit(_be_process(work, log / f"{rank}.txt"))
        started.append(pid)
    return started


def _be_process(work: Callable[[], object], log: Path) -> int:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    try:
        processes._run = processes._read_environment()
        commands._run(lambda: _share(work))
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _share(work: Callable[[], object]) -> None:
    processes.start()
    with processes.one_log():
        work()
        processes.leave()


def wait_for(started: Sequence[int]) -> list[int]:
    """Wait for processes. Return their exit codes; that of a killed one is the number of the signal, negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]


def share(count: int, work: Callable[[], object], log: Path) -> None:
    """Run ``work``, shared by processes, to a good end."""
    codes = wait_for(start_processes(count, work, log))
    assert codes == [0] * count, "\n".join(path.read_text() for path in sorted(log.iterdir()))


@contextmanager
def in_small_pieces() -> Iterator[None]:
    """Windows and blocks of few documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drhard.embeddings, "WINDOW", SMALL)
        patch.setattr(drhard.parts, "BLOCK_ROWS", SMALL)
        patch.setattr(drhard.backends, "ExactIndex", partial(ExactIndex, block_rows=SMALL))
        yield


def run_script(script: str, *arguments: object) -> None:
    """Run the main of a script in this process, which is one of several."""
    with given(script, *arguments) as module, in_small_pieces():
        module.main.__wrapped__()
    processes.wait_for_all()


def train(script: str, arguments: Sequence[object], trace: Path) -> None:
    """Run a training in this process. Write the loss of each batch and the gradient of each update to ``trace``."""
    losses, gradients = [], []
    note, sum_gradients = LossCheck.note, processes.sum_gradients

    def noted_loss(self: LossCheck, loss: torch.Tensor, step: int) -> None:
        note(self, loss, step)
        parts = processes.gather_numbers(loss.item())
        losses.append(sum(parts) if script == "adore/train.py" else parts[0])

    def noted_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        sum_gradients(parameters)
        gradients.append(torch.cat([parameter.grad.reshape(-1) for parameter in parameters]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossCheck, "note", noted_loss)
        patch.setattr(processes, "sum_gradients", noted_gradients)
        run_script(script, *arguments)
    if processes.is_first():
        torch.save({"losses": losses, "gradients": gradients}, trace)
    processes.wait_for_all()
