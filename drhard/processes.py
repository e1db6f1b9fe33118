"""The processes of one run, as torchrun starts them. No other module knows of ranks.

Without torchrun there is one process: each function then returns at once and does not load torch. Processes exchange
tensors by gloo on CPUs and by NCCL on GPUs. Everything else goes through the rendezvous store of torchrun.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from drhard.errors import InputError, reason_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

TIMEOUT = 1800  # seconds that a process waits for the others, unless a flag says otherwise
POLL = 1.0  # seconds between two looks at whether the run has ended
LEFT_ALONE = "a process of this run ended early or did not answer; run the same command again to resume"
_SPOKEN = "spoken"  # how many processes wanted to report how the run ended
# accelerate and transformers would split a training in their own way if they saw these.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


@dataclass
class _Run:
    """What a process knows of the others."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine
    store: Any = None  # torch.distributed's, once the processes have started to share their work
    values: int = 0  # how often first_value() was called
    launched: bool = False  # by torchrun or the like, even if this is the only process


def _read_environment() -> _Run:
    """Return what torchrun or accelerate launch say in the environment."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _Run()
    rank, count, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return _Run(rank, count, local, launched=True) if count > 1 else _Run(launched=True)


_run = _read_environment()


def count() -> int:
    """Return the number of processes; 1 without torchrun."""
    return _run.count


def rank() -> int:
    """Return which process this is, from 0."""
    return _run.rank


def was_launched() -> bool:
    """Return whether torchrun or the like started this process."""
    return _run.launched


def is_first() -> bool:
    """Return whether this process is the one that writes, logs and decides for all."""
    return _run.rank == 0


# Beginning and end


def start() -> None:
    """Find the store of this run. Call it before any library looks for GPUs or for other processes.

    Each process then sees one GPU of its machine, the one with the number ``LOCAL_RANK``.

    Raises:
        InputError: there are more processes than GPUs on this machine, or the store is not found in time.
    """
    if count() > 1:
        from torch.distributed.rendezvous import rendezvous

        _choose_gpu()
        with _meeting():
            _run.store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT))))
    for name in _VARIABLES:
        os.environ.pop(name, None)


def join(timeout: float = TIMEOUT) -> None:
    """Meet the other processes, to exchange tensors with them. What exchanges tensors does it by itself.

    Args:
        timeout: seconds to wait for the others whenever tensors are exchanged.

    Raises:
        InputError: the others are not found in time.
    """
    if count() == 1:
        return
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    if not distributed.is_initialized():
        with _meeting():
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                timeout=timedelta(seconds=timeout),
                store=PrefixStore("group", _run.store),
                rank=_run.rank,
                world_size=_run.count,
            )


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {count()} processes do not find each other: {reason_of(error)}") from None


def _choose_gpu() -> None:
    """Hide all GPUs but that of this process, unless the launcher did so. torch has not asked for them yet."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus <= 1:
        return
    if _run.local_rank >= gpus:
        raise InputError(f"there are {gpus} GPUs on this machine; start as many processes on it (--nproc_per_node)")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[_run.local_rank].strip()


@contextlib.contextmanager
def one_log() -> Iterator[None]:
    """Drop what processes other than the first print or log in the block, and their progress bars."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def may_speak() -> bool:
    """Return whether this process is the one to report how the run ended: the first that asks."""
    if count() == 1:
        return True
    if _run.store is None:
        if not is_first():
            time.sleep(5)  # torchrun ends the first process too once this one ends, and it is to report
        return is_first()
    try:
        return bool(_run.store.add(_SPOKEN, 1) == 1)
    except RuntimeError:  # the machine with the store is gone
        return is_first()


def is_lost_contact(error: BaseException) -> bool:
    """Return whether ``error`` says that another process ended or did not answer."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def leave() -> None:
    """Wait for the other processes and part from them, so that none ends while another still talks to it."""
    if _run.store is not None:
        from torch import distributed

        wait_for_all()
        distributed.destroy_process_group()
        _run.store = None


# Agreement


def wait_for_all() -> None:
    """Wait until all processes are here. Raises RuntimeError if one ended or does not come in time."""
    if count() > 1:
        import torch
        from torch import distributed

        join()
        distributed.all_reduce(torch.zeros(1))


def first_value(make: Callable[[], T]) -> T:
    """Return, in all processes, what ``make`` returns in the first. All must call it in the same order.

    Args:
        make: returns JSON types. It is called in the first process only, and may take longer than the time-out.

    Raises:
        InputError: ``make`` raised it.
    """
    if count() == 1:
        return make()
    key, _run.values = f"value {_run.values}", _run.values + 1
    if is_first():
        try:
            value = make()
        except InputError as error:
            _run.store.set(key, json.dumps([None, str(error)]))
            raise
        _run.store.set(key, json.dumps([value, None]))
        return value
    while not _run.store.check([key]):
        if _run.store.add(_SPOKEN, 0):  # the first process may be gone
            raise InputError(LEFT_ALONE)
        time.sleep(POLL / 20)
    value, message = json.loads(_run.store.get(key))
    if message is not None:
        raise InputError(message)
    return cast(T, value)


def require_same(value: Any, what: str) -> None:
    """Raise InputError, in all processes, unless ``value`` is the same in all.

    Args:
        what: its name in the message.
    """
    if count() > 1:
        _require_all(first_value(lambda: value) == value, f"the processes of this run have different {what}")


def require_shared(folder: Path) -> None:
    """Raise InputError, in all processes, unless all of them see the same ``folder``, which exists."""
    if count() == 1:
        return
    mark = first_value(lambda: _leave_mark(folder))
    try:
        _require_all(
            (folder / mark).exists(),
            f"{folder}: is not one folder for all processes of this run; give one that all machines share",
        )
    finally:
        if is_first():
            (folder / mark).unlink()


def _leave_mark(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    mark = f".shared-{uuid.uuid4().hex}"
    (folder / mark).touch()
    return mark


def _require_all(good: bool, message: str) -> None:
    """Raise InputError in all processes unless ``good`` is true in all."""
    import torch
    from torch import distributed

    join()
    bad = torch.tensor([not good], dtype=torch.int64)
    distributed.all_reduce(bad)
    if bad.item():
        raise InputError(message)


# Work


def take(name: str) -> int:
    """Return the number, from 0, of the next task called ``name``. No two processes get the same."""
    return int(_run.store.add(f"task {name}", 1)) - 1


def split(total: int) -> list[int]:
    """Return how many of ``total`` rows each process takes. They differ by one at most, the first take more."""
    return [total // count() + (process < total % count()) for process in range(count())]


def own_part(total: int) -> slice:
    """Return which of ``total`` rows are this process's: those behind the rows of the processes before it."""
    sizes = split(total)
    first = sum(sizes[: rank()])
    return slice(first, first + sizes[rank()])


def gather(own: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Join the tensors of all processes, in the order of their ranks.

    The result depends on ``own`` for the gradient, and on the tensors of the others not at all. If all processes
    compute the same loss from it, the gradient of that loss is the *sum* of their gradients: see
    :func:`sum_gradients`.

    Args:
        own: (n, ...) float32, n = ``sizes[rank()]``.
        sizes: the length of each process's tensor.

    Returns:
        (sum of ``sizes``, ...)
    """
    if count() == 1 or sum(sizes) == 0:
        return own
    import torch
    from torch import distributed

    join()
    padded = own.new_zeros(max(sizes), *own.shape[1:])  # the parts that are sent are of one size
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    received = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    received[rank()] = own
    return torch.cat(received)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its sum over all processes."""
    if count() == 1:
        return
    import torch
    from torch import distributed

    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:  # this process had no part of the batch
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    join()
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
