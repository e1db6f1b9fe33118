"""Choose where the model runs, in which precision, and on how many cores."""

import logging
import os
import subprocess
import warnings
from contextlib import suppress

from drhard.errors import InputError, reason_of

import numpy as np
import torch
from threadpoolctl import threadpool_limits

log = logging.getLogger(__name__)


LEAST_DRIVER = 580  # NVIDIA's; torch's build comes with CUDA 13, which needs it


def choose_device(no_cuda: bool = False, gpu: int = 0) -> torch.device:
    """Return the device of the model: the GPU numbered ``gpu``, or the CPU if there is none or ``no_cuda`` is set.

    Logs a warning if this machine has a GPU that torch cannot use. Raises InputError if there are GPUs, but not
    this one.
    """
    if no_cuda:
        return torch.device("cpu")
    reason = explain_no_gpu()
    if reason:
        log.warning("%s; using the CPU", reason)
    if reason or not torch.cuda.is_available():
        return torch.device("cpu")
    if not 0 <= gpu < torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} for the model; torch sees {torch.cuda.device_count()}")
    return torch.device("cuda", gpu)


def require_gpu() -> None:
    """Raise InputError if this machine has a GPU that torch cannot use. Call this when a flag asks for a GPU."""
    reason = explain_no_gpu()
    if reason:
        raise InputError(f"{reason}; omit the flag to use the CPU")


def explain_no_gpu() -> str | None:
    """Return why torch cannot use this machine's NVIDIA GPU; None if it can, if there is none, or if it is hidden."""
    with warnings.catch_warnings(action="ignore"):  # torch says the same in several lines
        if torch.cuda.is_available():
            return _too_old_a_gpu()
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # the user's choice
        return None
    gpu = _asked_of_the_driver()
    if gpu is None:
        return None
    if torch.version.cuda is None:
        return f"there is a GPU ({gpu}), but the installed torch is built without CUDA; see requirements.txt"
    return (
        f"there is a GPU ({gpu}), but torch {torch.__version__} does not see it: it needs driver {LEAST_DRIVER} or "
        "later and compute capability 7.5 or more"
    )


def _too_old_a_gpu() -> str | None:
    """Return why a GPU that torch sees is too old for it; None if none is."""
    known = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name.removeprefix("sm_").isdigit()]
    for gpu in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(gpu)
        if known and 10 * major + minor < min(known):
            return (
                f"GPU {gpu} ({torch.cuda.get_device_name(gpu)}) has compute capability {major}.{minor}, and torch "
                f"{torch.__version__} needs {min(known) // 10}.{min(known) % 10} or more"
            )
    return None


def _asked_of_the_driver() -> str | None:
    """Return the first GPU and its driver as nvidia-smi names them; None if it does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    name, _, driver = answer.partition("\n")[0].rpartition(", ")
    return f"{name}, driver {driver}" if name else None


def choose_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype of the model: ``precision`` ("float16" or "bfloat16") on a GPU, float32 on the CPU."""
    if precision is None:
        return torch.float32
    if device.type == "cpu":
        log.warning("half precision needs a GPU; using float32")
        return torch.float32
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def require_compiler(device: torch.device) -> None:
    """Raise InputError if torch cannot compile for ``device``. Call this when --torch_compile asks for it."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # there is no compiler, or it fails: the types of errors are not documented
        raise InputError(f"--torch_compile: torch cannot compile here ({reason_of(error)}); omit it") from None


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return ``array`` as a tensor on ``device``. A GPU copies it while Python goes on.

    The copy is from pinned memory: from other memory, Python would wait until the GPU has done all its work.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def limit_threads(threads: int) -> None:
    """Limit torch, NumPy's matrix products and faiss to ``threads`` cores. Raises InputError if it is below 1."""
    if threads < 1:
        raise InputError(f"the number of threads is {threads}; give at least 1")
    torch.set_num_threads(threads)
    with suppress(ModuleNotFoundError):  # an exact search works without faiss
        import faiss  # imported here: it takes part of a second, which other scripts save

        faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
