"""Loss and gradients of a batch, on a GPU recorded once and then asked for as a whole.

The tasks' models are so small that a GPU mostly waits for Python to name the next operation. A CUDA graph is a
recording of everything that one batch asks of the GPU, and is replayed by one call. It holds for one shape of batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.sequence.task import Examples

WARM_UPS = 3  # rounds before a recording, in which libraries choose their kernels and take their memory

Compute = Callable[[Examples], Tensor]  # batch -> loss, detached; the gradients are then the parameters'


class Recorder:
    """Runs `compute`, and records it for the first shape of batch that comes twice in a row.

    Args:
        compute: is called anew for batches of other shapes. It may not look at the value of a tensor, nor keep tensors
            that it gave to the parameters as gradients.
        model: whose parameters have the gradients.
    """

    def __init__(self, compute: Compute, model: nn.Module) -> None:
        self._compute, self._parameters = compute, list(model.parameters())
        self._recording: _Recording | None = None
        self._last: list[torch.Size] = []

    def __call__(self, examples: Examples) -> Tensor:
        """Give the loss of a batch that is on the GPU.

        Raises:
            ConfigError: the model or the task cannot be recorded.
        """
        shapes = [tensor.shape for tensor in examples.tensors()]
        if self._recording is None and shapes == self._last:
            try:
                self._recording = _Recording(self._compute, self._parameters, examples)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise ConfigError(
                    f"graph=true: this stack or task cannot be recorded ({reason}); leave it out"
                ) from error
        self._last = shapes
        if self._recording is not None and self._recording.shapes == shapes:
            return self._recording.replay(examples)
        return self._compute(examples)


class _Recording:
    """`compute` for batches of the shape of `examples`.

    The warm-up sees that batch a few times; that tells on nothing but the running statistics of a batch norm.
    """

    def __init__(self, compute: Compute, parameters: list[nn.Parameter], examples: Examples) -> None:
        self.shapes = [tensor.shape for tensor in examples.tensors()]
        self._examples, self._parameters = examples.clone(), parameters
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with _fastest_convolutions():
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    compute(self._examples)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = compute(self._examples)
        self._gradients = [parameter.grad for parameter in parameters]

    def replay(self, examples: Examples) -> Tensor:
        for own, new in zip(self._examples.tensors(), examples.tensors(), strict=True):
            own.copy_(new)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # which another shape's batch, or the optimiser, may have put aside
        return self._loss.clone()  # as the next replay writes to the same place


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its kernels for each convolution, in place of guessing."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
