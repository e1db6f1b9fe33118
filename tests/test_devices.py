"""Where the work is done."""

import subprocess
import sys

from drhard.devices import encoding_dtype, limit_threads
from drhard.errors import InputError

import pytest
import torch

THREADS = """
from drhard.devices import encoding_dtype, limit_threads
import faiss, threadpoolctl, torch
limit_threads(1)
print(torch.get_num_threads(), faiss.omp_get_max_threads())
print({library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"})
"""


def test_threads_are_limited_in_every_library() -> None:
    printed = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[:2] == ["1 1", "{1}"]


def test_no_thread_is_refused() -> None:
    with pytest.raises(InputError, match="0 threads"):
        limit_threads(0)


def test_half_precision_is_for_gpus(caplog: pytest.LogCaptureFixture) -> None:
    assert encoding_dtype(None, torch.device("cuda")) == torch.float32
    assert encoding_dtype("float16", torch.device("cuda")) == torch.float16
    assert encoding_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
    assert not caplog.records
    assert encoding_dtype("float16", torch.device("cpu")) == torch.float32
    assert "needs a GPU" in caplog.text
