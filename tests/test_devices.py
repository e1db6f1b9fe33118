"""Where the work is done."""

from pathlib import Path

from drhard.devices import choose_device, choose_dtype, explain_no_gpu, limit_threads, require_compiler, require_gpu
from drhard.errors import InputError

import pytest
import torch
from helpers import run_python

THREADS = """
from drhard.devices import choose_dtype, limit_threads
import faiss, threadpoolctl, torch
limit_threads(1)
print(torch.get_num_threads(), faiss.omp_get_max_threads())
print({library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"})
"""


def test_threads_are_limited_in_every_library() -> None:
    printed = run_python("-c", THREADS, OMP_NUM_THREADS="2").stdout
    assert printed.split("\n")[:2] == ["1 1", "{1}"]


def test_no_thread_is_refused() -> None:
    with pytest.raises(InputError, match="the number of threads is 0"):
        limit_threads(0)


def test_half_precision_is_for_gpus(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_dtype(None, torch.device("cuda")) == torch.float32
    assert choose_dtype("float16", torch.device("cuda")) == torch.float16
    assert choose_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
    assert not caplog.records
    assert choose_dtype("float16", torch.device("cpu")) == torch.float32
    assert "needs a GPU" in caplog.text


# GPUs that torch cannot use


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which torch sees no GPU; the folder, first of PATH, may get an nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return tmp_path


def put_nvidia_smi(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_driver_too_old_for_torch_is_told(
    machine: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(machine, "echo 'Tesla T4, 535.104.05'; echo 'Tesla T4, 535.104.05'")
    sentence = r"there is a GPU \(Tesla T4, driver 535\.104\.05\), but torch .* does not see it: it needs driver 580"
    with pytest.raises(InputError, match=sentence):
        require_gpu()
    assert choose_device() == torch.device("cpu")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "driver 580 or later and compute capability 7.5" in caplog.text
    caplog.clear()
    assert choose_device(no_cuda=True) == torch.device("cpu")
    assert not caplog.records
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="built without CUDA; see requirements.txt"):
        require_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert explain_no_gpu() is None


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'; exit 9", ":"])
def test_machines_without_a_gpu_are_not_warned_of(machine: Path, script: str) -> None:
    assert explain_no_gpu() is None
    put_nvidia_smi(machine, script)
    assert explain_no_gpu() is None
    require_gpu()


def test_card_too_old_for_torch_is_told(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (6, 0) if gpu else (9, 0))
    with pytest.raises(InputError, match=r"GPU 1 \(Tesla P100\) has compute capability 6\.0, and torch .* needs 7\.5"):
        require_gpu()
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    assert explain_no_gpu() is None
    assert choose_device(gpu=1) == torch.device("cuda", 1)


def test_a_torch_that_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        InputError, match=r"^--torch_compile: torch cannot compile here \(no C\+\+ compiler\); omit it$"
    ):
        require_compiler(torch.device("cpu"))
