"""Where our kernels cannot be built that is said, once, and others do the work."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from asr.nn import gpu_kernels
from asr.nn.cells import full_on_gpu


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    tried = gpu_kernels._tried
    tried.cache_clear()
    yield
    tried.cache_clear()


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


def test_they_are_for_nvidias_gpus_and_full_recurrences_for_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        like = torch.zeros(1, device="cuda")
    monkeypatch.setattr(gpu_kernels, "_tried", lambda device: True)
    for capability in ((7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert gpu_kernels.runs_on(like)
        assert full_on_gpu.fits(like) == (capability >= (8, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not gpu_kernels.runs_on(like)
    assert not full_on_gpu.fits(like)
