"""Where the model runs, in which precision, and on how many cores."""

import logging
import os
import subprocess
import warnings
from contextlib import suppress

from drhard.errors import InputError

import torch
from threadpoolctl import threadpool_limits

log = logging.getLogger(__name__)


LEAST_DRIVER = 580  # of NVIDIA, for the CUDA 13 that torch's build brings along


def choose_device(no_cuda: bool = False, gpu: int = 0) -> torch.device:
    """The GPU if there is one and it is not declined, the CPU otherwise. Raises InputError if it is not there.

    Logs a warning if this machine has a GPU that torch cannot use.
    """
    if no_cuda:
        return torch.device("cpu")
    reason = explain_no_gpu()
    if reason:
        log.warning("%s; the work is done on the CPU", reason)
    if reason or not torch.cuda.is_available():
        return torch.device("cpu")
    if not 0 <= gpu < torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} for the model; {torch.cuda.device_count()} are seen")
    return torch.device("cuda", gpu)


def require_gpu() -> None:
    """Raise InputError if this machine has a GPU that torch cannot use; for those who ask for one by a flag."""
    reason = explain_no_gpu()
    if reason:
        raise InputError(f"{reason}; leave the flag out to work on the CPU")


def explain_no_gpu() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine; None if it can, if there is none, or if it is hidden."""
    with warnings.catch_warnings(action="ignore"):  # torch says the same in several lines
        if torch.cuda.is_available():
            return _too_old_a_gpu()
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # the user's choice
        return None
    gpu = _asked_of_the_driver()
    if gpu is None:
        return None
    if torch.version.cuda is None:
        return f"there is a GPU ({gpu}), but the torch that is installed is built without CUDA; see requirements.txt"
    return (
        f"there is a GPU ({gpu}), but torch {torch.__version__} does not see it: it needs driver {LEAST_DRIVER} or "
        "later and compute capability 7.5 or more"
    )


def _too_old_a_gpu() -> str | None:
    """What is said of a GPU that torch sees, but has no code for."""
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
    """The first GPU and its driver as nvidia-smi names them; None if it does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    name, _, driver = answer.partition("\n")[0].rpartition(", ")
    return f"{name}, driver {driver}" if name else None


def choose_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """What the model computes in: ``precision``, "float16" or "bfloat16", on a GPU; float32 without one."""
    if precision is None:
        return torch.float32
    if device.type == "cpu":
        log.warning("half precision is left out: it needs a GPU")
        return torch.float32
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def limit_threads(threads: int) -> None:
    """Have torch, NumPy's matrix products and faiss work on so many cores. Raises InputError if that is none."""
    if threads < 1:
        raise InputError(f"{threads} threads cannot do the work; give at least 1")
    torch.set_num_threads(threads)
    with suppress(ModuleNotFoundError):  # an exact search does without
        import faiss  # here, as it takes a part of a second that other scripts save

        faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
