"""Where our kernels cannot be built that is said, once, and others do the work."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from asr.nn import gpu_kernels


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    gpu_kernels._tried.cache_clear()
    yield
    gpu_kernels._tried.cache_clear()


def test_a_missing_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_kernel = pytest.importorskip("asr.nn.triton_kernel", reason="Triton comes with torch's CUDA builds only")

    def trial(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(triton_kernel, "trial", trial)
    with pytest.warns(UserWarning, match=r"\(Failed to find C compiler\.\)"):
        assert not gpu_kernels._tried(torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu_kernels._tried(torch.device("cuda"))


def test_a_full_memory_is_not_taken_for_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_kernel = pytest.importorskip("asr.nn.triton_kernel", reason="Triton comes with torch's CUDA builds only")

    def trial(device: torch.device) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(triton_kernel, "trial", trial)
    with pytest.raises(torch.OutOfMemoryError):
        gpu_kernels._tried(torch.device("cuda"))


def test_a_cpu_has_none() -> None:
    assert not gpu_kernels.runs_on(torch.zeros(1))
