"""The depth sweep: every image once an epoch, the training images judged, and a one-frame stack is a plain MLP."""

import pytest
import torch

from asr.config.options import validate_stack
from asr.errors import ConfigError
from asr.sequence import tasks
from asr.sequence.settings import Case
from asr.sequence.task import SupervisedTask
from asr.sequence.trainer import build_model

pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")


def make(**options: object) -> SupervisedTask:
    task = tasks.build("depth_sweep", Case(options=options), "test")
    assert isinstance(task, SupervisedTask)
    return task


def test_an_epoch_has_every_image_once_but_those_of_the_last_smaller_batch() -> None:
    task = make()
    (whole,) = task.evaluation("test")
    assert whole.inputs.shape == (1797, 1, 64)
    assert (whole.inputs.min(), whole.inputs.max()) == (0.0, 1.0)
    batches = task.batches(100, torch.Generator().manual_seed(1))
    epoch = [next(batches) for _ in range(17)]
    rows = torch.cat([examples.inputs.flatten(1) for examples in epoch])
    assert len(rows) == 1700
    assert len(rows.unique(dim=0)) == 1700
    assert not torch.equal(next(batches).inputs, epoch[0].inputs)
    again = next(task.batches(100, torch.Generator().manual_seed(1)))
    assert torch.equal(again.targets, epoch[0].targets)
    assert len(next(task.batches(5000, torch.Generator())).targets) == 1797


def test_chance_is_the_commonest_digit() -> None:
    task = make()
    (whole,) = task.evaluation("validation")
    rates = []
    for digit in range(10):
        total, count = task.score(torch.eye(10)[[digit] * 1797], whole)
        rates.append(float(total / count))
    assert task.chance == pytest.approx(min(rates))


@pytest.mark.parametrize("residual", ["none", "identity"])
def test_a_stack_over_one_frame_is_a_feed_forward_net(residual: str) -> None:
    options = {
        "name": "rnn", "num_layers": 3, "hidden_size": 6, "activation": "tanh", "bidirectional": False,
        "batch_norm": "none", "residual": residual,
    }  # fmt: skip
    task = make()
    model = build_model(task, Case(stack=validate_stack(options))).double()
    examples = next(task.batches(5, torch.Generator().manual_seed(1)))
    hidden = examples.inputs[:, 0].double()
    for index, layer in enumerate(model.stack.layers):
        after = torch.tanh(hidden @ layer.projection.weight.T + layer.projection.bias)
        hidden = after + hidden if residual == "identity" and index else after
    expected = model.linear(hidden)
    examples = type(examples)(examples.inputs.double(), examples.lengths, examples.targets)
    outputs = model(examples)
    assert float((outputs - expected).detach().abs().max()) < 1e-12
    task.loss(outputs, examples).backward()
    assert all(not layer.cell.recurrent.grad.any() for layer in model.stack.layers)


def test_pixels_are_cut_into_whole_frames() -> None:
    (whole,) = make(num_frames=8).evaluation("test")
    assert whole.inputs.shape == (1797, 8, 8)
    assert whole.lengths.unique().tolist() == [8]
    with pytest.raises(ConfigError, match="got 7, expected a divisor of 64"):
        make(num_frames=7)
