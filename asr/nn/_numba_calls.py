"""How compiled loops over tensors are called: as flat arrays, for each chain, on threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORTH_A_THREAD = 2**17  # units x frames, some 0.3 ms


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Their memory as it is, or a copy where it has gaps."""
    return [_numpy(tensor) for tensor in tensors]


def flat_arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The same, each in one dimension."""
    return [array.reshape(-1) for array in arrays(*tensors)]


def by_chain(*tensors: Tensor) -> Iterator[tuple[np.ndarray, ...]]:
    """For each chain k the memory of each tensor's [k], in one dimension."""
    return zip(*(array.reshape(len(array), -1) for array in arrays(*tensors)), strict=True)


def rows_of(tensor: Tensor) -> tuple[np.ndarray, int, int]:
    """(S, B, O) as its memory from its first element on, and the distances of frames and of items."""
    tensor = tensor.detach()
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    by_frame, by_item, _ = tensor.stride()
    frames, items, size = tensor.shape
    extent = (frames - 1) * by_frame + (items - 1) * by_item + size if tensor.numel() else 0
    return _numpy(tensor.as_strided((extent,), (1,))), by_frame, by_item


def _numpy(tensor: Tensor) -> np.ndarray:
    """NumPy lacks bfloat16, which comes as its bits."""
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def run(kernel: Callable[..., Any], calls: list[tuple[Any, ...]], batch: int, work: int) -> None:
    """Call a kernel for each chain and all its items, on as many threads as torch uses where that pays.

    Args:
        kernel: takes a range of items last.
        calls: its other arguments, for each chain.
        batch: items.
        work: values that an item writes.
    """
    threads = min(torch.get_num_threads(), len(calls) * batch, len(calls) * batch * work // WORTH_A_THREAD)
    if threads <= 1:
        for call in calls:
            kernel(*call, 0, batch)
        return
    parts = -(-threads // len(calls))
    ranges = [(call, batch * part // parts, batch * (part + 1) // parts) for call in calls for part in range(parts)]
    # Made anew each time, for some 50 us a thread: threads that wait between calls do not survive a fork.
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *call, first, last) for call, first, last in ranges if first < last]:
            done.result()
