"""Where a GPU's time goes: its kernels by kind, how long it idles, and how fast its matrix products can be."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType

# The first that fits a kernel's name, lower case, is its kind. cuDNN's recurrences at large sizes are products, of kind
# "gemm", and the element-wise kernels between them, of kind "recurrence".
KINDS = {
    "copy": r"^mem(cpy|set)",
    "recurrence": r"rnn|gru|lstm",
    "convolution": r"fprop|dgrad|wgrad|implicit|convol|winograd|depthwise|conv\dd|conv_",
    "gemm": r"gemm|gemv|nvjet|cutlass|xmma|cublas|splitk|matmul",
}
PRODUCTS = ("gemm", "convolution", "recurrence")
PEAK_SIZE = 8192
NAME_LENGTH = 160  # of a kernel, as printed: C++ templates fill pages


@dataclass(frozen=True, slots=True)
class Kernel:
    """One that ran: its full name, and when, in seconds."""

    name: str
    start: float
    seconds: float


def kind_of(name: str) -> str:
    """What a kernel of this name computes: one of `KINDS`, or "other"."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lower)), "other")


def kernels_of(step: Callable[[], Any], steps: int) -> list[Kernel]:
    """Everything that the GPU ran, copies included, in so many steps."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    # Not by `profile.events()`, which takes a minute for the hundred thousand of a recurrent net.
    assert profile.profiler is not None
    results = profile.profiler.kineto_results
    assert results is not None
    kernels = [
        Kernel(event.name(), 1e-9 * event.start_ns(), 1e-9 * event.duration_ns())
        for event in results.events()
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    if not kernels:
        raise RuntimeError(
            "torch's profiler has recorded no kernel: it needs CUPTI, which torch's CUDA builds bring along"
        )
    return kernels


def busy_seconds(kernels: Iterable[Kernel]) -> float:
    """For how long at least one of them ran.

    >>> busy_seconds([Kernel("a", 0.0, 2.0), Kernel("b", 1.0, 2.0), Kernel("c", 5.0, 1.0)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        stop = kernel.start + kernel.seconds
        total += max(0.0, stop - max(kernel.start, end))
        end = max(end, stop)
    return total


def summary(kernels: list[Kernel], *, steps: int, step_seconds: float) -> dict[str, Any]:
    """Shares of the device time by kind, the three largest others, and the share of a step in which nothing runs.

    Args:
        kernels: of `steps` steps.
        steps: how many.
        step_seconds: of a step without the profiler, which slows the launches down.
    """
    total = sum(kernel.seconds for kernel in kernels)
    shares = dict.fromkeys((*KINDS, "other"), 0.0)
    others: dict[str, tuple[float, int]] = {}
    for kernel in kernels:
        kind = kind_of(kernel.name)
        shares[kind] += kernel.seconds / total
        if kind not in PRODUCTS:
            seconds, calls = others.get(kernel.name, (0.0, 0))
            others[kernel.name] = seconds + kernel.seconds, calls + 1
    largest = sorted(others.items(), key=lambda item: -item[1][0])[:3]
    return {
        "device_time_shares": shares,
        "products_share": sum(shares[kind] for kind in PRODUCTS),
        "largest_others": [
            {"kernel": name[:NAME_LENGTH], "share": seconds / total, "calls_per_step": calls / steps}
            for name, (seconds, calls) in largest
        ],
        "kernels_per_step": len(kernels) / steps,
        "idle_share": max(0.0, 1 - busy_seconds(kernels) / steps / step_seconds),
    }


def peak_operations_per_second(repeats: int = 20) -> float:
    """What this GPU reaches in bf16 products of two square matrices, two operations a multiply-add."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    fastest = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(left, right)
        torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / fastest
