"""The processes of one run, as torchrun starts them. No other module knows of ranks.

Without torchrun there is one process: each function then returns at once and does not load torch. Processes exchange
tensors by gloo on CPUs and by NCCL on GPUs. Everything else goes through the rendezvous store of torchrun.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from drhard.errors import InputError, reason_of

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")
Number = TypeVar("Number", int, float)

TIMEOUT = 1800  # seconds that a process waits for tensors of the others, unless a flag says otherwise
SILENCE = 300.0  # seconds without a sign of life after which another process counts as dead
BEAT = 5.0  # seconds between two signs of life
LONGEST_NAP = 0.05  # seconds between two looks at the store
LEFT_ALONE = "a process of this run ended early or did not answer; run the same command again to resume"
_SPOKEN = "spoken"  # how many processes wanted to report how the run ended
# accelerate and transformers would split a training in their own way if they saw these. Those that begin with
# ACCELERATE_ come from the settings of accelerate launch, and could compile or shard the model.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_ACCELERATE = "ACCELERATE_"


# How many processes other launchers have started. srun sets its variable for a step alone; SLURM_NTASKS is also set in
# the script of a job, which runs once.
_COPIES = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}


@dataclass
class _Run:
    """What a process knows of the others."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine
    store: Any = None  # torch.distributed's, once the processes have started to share their work
    agreements: int = 0  # how many there were so far; the same in all processes
    on_machine: int = 1  # processes of this run on this machine
    launched: bool = False  # by torchrun or the like, even if this is the only process
    ended: threading.Event = field(default_factory=threading.Event)  # no more signs of life


def _read_environment() -> _Run:
    """Return what torchrun or accelerate launch say in the environment."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _Run()
    rank, count, local, on_machine = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    return _Run(rank, count, local, on_machine=on_machine, launched=True) if count > 1 else _Run(launched=True)


_run = _read_environment()


def count() -> int:
    """Return the number of processes; 1 without torchrun."""
    return _run.count


def rank() -> int:
    """Return which process this is, from 0."""
    return _run.rank


def count_on_machine() -> int:
    """Return how many processes of this run share the memory of this machine."""
    return _run.on_machine


def was_launched() -> bool:
    """Return whether torchrun or the like started this process."""
    return _run.launched


def is_first() -> bool:
    """Return whether this process is the one that writes, logs and decides for all."""
    return _run.rank == 0


def find_copies() -> tuple[str, int] | None:
    """Return which launcher started more processes than know of each other, and how many; None if none did.

    A launcher that starts one torchrun on each machine starts no more than there are processes in the run.
    """
    found = ((launcher, os.environ.get(variable, "")) for variable, launcher in _COPIES.items())
    return next(((name, int(number)) for name, number in found if number.isdigit() and int(number) > count()), None)


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
            store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT))))
            _run.store = _find_own_part(store)
        threading.Thread(target=_give_signs_of_life, args=(_run.store, _run.rank, _run.ended), daemon=True).start()
    for name in list(os.environ):
        if name in _VARIABLES or name.startswith(_ACCELERATE):
            del os.environ[name]


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


def _find_own_part(store: Any) -> Any:
    """Return the part of ``store`` that belongs to this run, without what an earlier attempt of torchrun left there.

    The first process names the run. Each other one answers with a name of its own, and starts once the first has listed
    this name among the members: the list of an earlier attempt lacks it.

    Raises:
        RuntimeError: a process did not come in time.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    own, end = uuid.uuid4().hex, time.monotonic() + TIMEOUT
    if is_first():
        store.set("run", own)
    answered = ""
    while time.monotonic() < end:
        run = store.get("run").decode()
        answers, members = [f"{run} {other}" for other in range(count())], f"{run} members"
        if run != answered:
            store.set(answers[rank()], own)
            answered = run
        if is_first() and store.check(answers):
            store.set(members, json.dumps([store.get(answer).decode() for answer in answers]))
        if store.check([members]) and own in json.loads(store.get(members)):
            return PrefixStore(run, store)
        time.sleep(LONGEST_NAP)
    raise RuntimeError("some did not come in time")


def _give_signs_of_life(store: Any, rank: int, ended: threading.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the machine with the store is gone; the main thread will see it
        while not ended.is_set():
            store.add(_sign(rank), 1)
            ended.wait(BEAT)


def _sign(rank: int) -> str:
    return f"alive {rank}"


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {count()} processes do not find each other: {reason_of(error)}") from None


def _choose_gpu() -> None:
    """Hide all GPUs but that of this process, unless the launcher did so. torch has not asked for them yet."""
    import torch

    gpus, seen_by_all = torch.cuda.device_count(), "TORCHELASTIC_RUN_ID" in os.environ  # set by torchrun
    if gpus == 0 or (gpus == 1 and not seen_by_all):
        return
    if gpus < _run.on_machine or _run.local_rank >= gpus:
        raise InputError(
            f"this machine has {gpus} GPU(s) for {_run.on_machine} processes; start fewer on it (--nproc_per_node), or "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= to compute on the CPU"
        )
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
    if _run.store is None:
        return
    from torch import distributed

    wait_for_all()
    _run.store.add("left", 1)
    if is_first():  # the store may be in this process, and end with it
        _wait_until(lambda: bool(_run.store.add("left", 0) == count()))
    _run.ended.set()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    _run.store = None


# Agreement


def _next_key(what: str) -> str:
    """Return a key of the store for the next agreement. All processes must ask for it in the same order."""
    _run.agreements += 1
    return f"{what} {_run.agreements}"


def _wait_until(ready: Callable[[], bool]) -> None:
    """Look at the store until ``ready``.

    Raises:
        InputError: another process ended or gave no sign of life for :data:`SILENCE` seconds.
    """
    nap, looked = 0.001, time.monotonic()
    signs: dict[int, tuple[int, float]] = {}  # rank -> its last sign, and when it was new
    while not ready():
        if _run.store.add(_SPOKEN, 0):
            raise InputError(LEFT_ALONE)
        time.sleep(nap)
        nap = min(2 * nap, LONGEST_NAP)
        now = time.monotonic()
        if now - looked >= min(BEAT, SILENCE / 2):
            looked = now
            for other in range(count()):
                sign = int(_run.store.add(_sign(other), 0))
                known, since = signs.get(other, (sign, now))
                signs[other] = (sign, now if sign != known else since)
            if any(now - since > SILENCE for _, since in signs.values()):
                raise InputError(LEFT_ALONE)


def wait_for_all() -> None:
    """Wait until all processes are here. Raises InputError if one ended."""
    if count() > 1:
        key = _next_key("here")
        _run.store.add(key, 1)
        _wait_until(lambda: bool(_run.store.add(key, 0) == count()))


def first_value(make: Callable[[], T]) -> T:
    """Return, in all processes, what ``make`` returns in the first. All must call it in the same order.

    Args:
        make: returns JSON types. It is called in the first process only, and may take any time.

    Raises:
        InputError: ``make`` raised it, or another process ended.
    """
    if count() == 1:
        return make()
    key = _next_key("value")
    if is_first():
        try:
            value = make()
        except InputError as error:
            _run.store.set(key, json.dumps([None, str(error)]))
            raise
        _run.store.set(key, json.dumps([value, None]))
        return value
    _wait_until(lambda: bool(_run.store.check([key])))
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
    key = _next_key("bad")
    if not good:
        _run.store.set(key, message)
    wait_for_all()
    if _run.store.check([key]):
        raise InputError(message)


# Work


@contextlib.contextmanager
def share_tasks(total: int = sys.maxsize) -> Iterator[Iterator[int]]:
    """Share tasks. Yield the numbers of those that this process does, ascending; the block does them.

    A process takes the next task when it has time. At the end of the block, it waits for the others.

    Args:
        total: the number of tasks. Without it, the block sees for itself that there are no more.

    Raises:
        InputError: the block raised it in one of the processes. The others do not begin another task.
    """
    if count() == 1:
        yield iter(range(total))
        return
    key = _next_key("tasks")
    failure = f"{key} failure"

    def take() -> Iterator[int]:
        while not _run.store.check([failure]) and (task := _run.store.add(key, 1) - 1) < total:
            yield task

    try:
        yield take()
    except InputError as error:
        _run.store.set(failure, str(error))
        wait_for_all()
        raise
    wait_for_all()
    if _run.store.check([failure]):
        raise InputError(_run.store.get(failure).decode())


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
        own: (n, ...) of any type, n = ``sizes[rank()]``.
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


def gather_numbers(own: Number) -> list[Number]:
    """Return the numbers of all processes, in the order of their ranks."""
    if count() == 1:
        return [own]
    import torch

    dtype = torch.float64 if isinstance(own, float) else torch.int64
    numbers: list[Number] = gather(torch.tensor([own], dtype=dtype), [1] * count()).tolist()
    return numbers


def exchange(own: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
    """Send rows to each process. Return those that all processes sent to this one, in the order of their ranks.

    Args:
        own: (n, dim), the rows for each process one after another.
        sent: how many rows each process gets.
        received: how many rows each process sends to this one.
    """
    import torch
    from torch import distributed

    join()
    found = torch.empty(sum(received), *own.shape[1:], dtype=own.dtype, device=own.device)
    distributed.all_to_all_single(found, own.contiguous(), list(received), list(sent))
    return found


def collect(own: np.ndarray) -> np.ndarray:
    """Return, in the first process, the arrays of all processes joined in the order of their ranks.

    Args:
        own: (n, ...) of any length.

    Returns:
        (sum of the lengths, ...). In the other processes, an array without rows.
    """
    if count() == 1:
        return own
    import torch

    sizes = gather_numbers(len(own))
    sent, nothing = [len(own), *[0] * (count() - 1)], [0] * count()
    collected: np.ndarray = exchange(torch.from_numpy(own), sent, sizes if is_first() else nothing).numpy()
    return collected


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
