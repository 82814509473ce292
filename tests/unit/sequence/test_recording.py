"""Which batches are replayed from a recording, and what of them reaches the optimiser.

The GPU's part is played here: a replay computes what was recorded anew, from the recording's own inputs and into its
own results, as a CUDA graph does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.sequence import recording
from asr.sequence.recording import Recorder
from asr.sequence.task import Examples


class Gpu:
    """What `recording` uses of torch.cuda."""

    def __init__(self, model: nn.Linear) -> None:
        self.model = model
        self.is_recording = False
        self.computed = self.replayed = 0

    def compute(self, examples: Examples) -> Tensor:
        self.computed += 1
        self.model.zero_grad(set_to_none=True)
        loss = (self.model(examples.inputs)[:, 0] - examples.targets).square().mean()
        loss.backward()
        if self.is_recording:
            gradients = [p.grad for p in self.model.parameters()]
            self.recorded = (examples, loss.detach(), gradients)
        return loss.detach()

    @contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        self.is_recording = True
        yield
        self.is_recording = False

    def replay(self) -> None:
        self.replayed += 1
        examples, loss, gradients = self.recorded
        attached = [p.grad for p in self.model.parameters()]
        loss.copy_(self.compute(examples))
        for parameter, before, gradient in zip(self.model.parameters(), attached, gradients, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            gradient.copy_(parameter.grad)
            parameter.grad = before  # a GPU's replay does not touch Python's objects
        self.computed -= 1


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    torch.manual_seed(0)
    gpu = Gpu(nn.Linear(3, 1).double())
    monkeypatch.setattr(recording.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(recording.torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(recording.torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(recording.torch.cuda, "CUDAGraph", lambda: gpu)
    monkeypatch.setattr(recording.torch.cuda, "graph", gpu.graph)
    return gpu


def batch(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return Examples(inputs, torch.full((count,), 1), torch.randn(count, generator=generator, dtype=torch.float64))


def test_every_batch_has_the_gradients_and_the_loss_that_it_has_without_a_recording(gpu: Gpu) -> None:
    recorder = Recorder(gpu.compute, gpu.model)
    parameters = list(gpu.model.parameters())
    losses, gradients, expected = [], [], []
    for seed, count in enumerate((4, 4, 4, 2, 4, 2, 2, 4)):
        expected.append((gpu.compute(batch(count, seed)), [p.grad for p in parameters]))
        gpu.model.zero_grad(set_to_none=True)
        losses.append(recorder(batch(count, seed)))
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
    assert gpu.replayed == 4  # from the second batch of 4 on; batches of 2 go their usual way
    torch.testing.assert_close(losses, [loss for loss, _ in expected], rtol=0, atol=0)
    torch.testing.assert_close(gradients, [grads for _, grads in expected], rtol=0, atol=0)


def test_shapes_that_never_come_twice_in_a_row_are_not_recorded(gpu: Gpu) -> None:
    recorder = Recorder(gpu.compute, gpu.model)
    for seed, count in enumerate((4, 2, 4, 2, 3)):
        recorder(batch(count, seed))
    assert (gpu.replayed, gpu.computed) == (0, 5)


def test_what_cannot_be_recorded_is_said(gpu: Gpu) -> None:
    def looking(examples: Examples) -> Tensor:
        if gpu.is_recording:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return gpu.compute(examples)

    recorder = Recorder(looking, gpu.model)
    recorder(batch(4, 1))
    with pytest.raises(ConfigError, match=r"graph=true: .*not permitted when stream is capturing\); leave it out"):
        recorder(batch(4, 2))
