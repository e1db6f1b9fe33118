"""Where the model runs, in which precision, and on how many cores."""

import logging

from drhard.errors import InputError

import torch
from threadpoolctl import threadpool_limits

log = logging.getLogger(__name__)


def model_device(no_cuda: bool = False, gpu: int = 0) -> torch.device:
    """The GPU if there is one and it is not declined, the CPU otherwise. Raises InputError if it is not there."""
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    if not 0 <= gpu < torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} for the model; {torch.cuda.device_count()} are seen")
    return torch.device("cuda", gpu)


def encoding_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """What the model computes in: ``precision``, "float16" or "bfloat16", on a GPU; float32 without one."""
    if precision is None:
        return torch.float32
    if device.type == "cpu":
        log.warning("half precision is left out: it needs a GPU")
        return torch.float32
    return getattr(torch, precision)


def limit_threads(threads: int) -> None:
    """Have torch, NumPy's matrix products and faiss work on so many cores. Raises InputError if that is none."""
    import faiss

    if threads < 1:
        raise InputError(f"{threads} threads cannot do the work; give at least 1")
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
