"""Without a GPU: a stack on one makes all its tensors there, and reads none of their values.

torch's fake tensors have a device and a shape but no numbers: an operation that mixes devices, or asks for a number,
which on a GPU would wait for it, fails. cuDNN's layers, which they do not know, are replaced; so are the compiled
loops.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from asr import stacks
from asr.config.options import validate_stack
from asr.nn import batch_norm_on_gpu
from asr.nn.cells import elementwise, full_on_gpu
from asr.stacks.base import Stack
from tests.unit.stacks.test_contract import INPUT_SIZE, configurations, label

READS_VALUES = {
    "clockwork": "keeps its clock on the CPU, where fake tensors have no values either",
    "skip": "asks in every turn whether anything is left to read",
}


def layer(num_states: int) -> Callable[..., tuple[Tensor, ...]]:
    """In place of a cuDNN layer: as particular about its arguments, and of the same shapes."""

    def run(chain: Tensor, initial: Any, weights: list[Tensor], *rest: object) -> tuple[Tensor, ...]:
        states = initial if num_states == 2 else (initial,)
        tensors = (chain, *states, *weights)
        assert len(states) == num_states
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
        assert len({tensor.dtype for tensor in tensors}) == 1
        assert all(state.is_contiguous() for state in states)
        size = states[0].shape[-1]
        output = torch.nn.functional.linear(chain, weights[0], weights[2])[..., :size] + states[0]
        return output, *(output[-1:] + state for state in states)

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("gru", "rnn_tanh", "rnn_relu"):
        monkeypatch.setattr(torch._VF, name, layer(1))
    monkeypatch.setattr(torch._VF, "lstm", layer(2))
    monkeypatch.setattr(elementwise, "_loops", lambda like: None)
    monkeypatch.setattr(full_on_gpu, "fits", lambda like: False)
    monkeypatch.setattr(batch_norm_on_gpu, "fits", lambda hidden, scale: False)
    with FakeTensorMode():
        yield


@pytest.mark.parametrize("options", configurations(), ids=label)
def test_everything_is_made_where_the_inputs_are(options: dict[str, Any], fake: None) -> None:
    if options["name"] in READS_VALUES:
        pytest.skip(READS_VALUES[options["name"]])
    with torch.device("cuda"):
        stack: Stack = stacks.build(validate_stack(options), INPUT_SIZE)
    inputs = torch.randn(3, 20, INPUT_SIZE, device="cuda")
    lengths = torch.full((3,), 20, device="cuda")
    for training in (True, False):
        outputs, _ = stack.train(training)(inputs, lengths)
        assert outputs.is_cuda
        assert outputs.shape[0] == 3
    if stack.lookahead_frames is None:
        return
    state = stack.initial_state(3, inputs)
    for frames in (1, 5, 0, 7, 2):
        outputs, state = stack.step(inputs[:, :frames], state)
        assert outputs.is_cuda
    assert stack.flush(state).is_cuda
