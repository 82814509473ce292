"""Updates replayed from a CUDA graph against the same ones in the usual way, for the stacks of the sequence tasks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from asr.sequence import tasks
from asr.sequence.recording import Recorder
from asr.sequence.settings import Case
from asr.sequence.task import Examples, SupervisedTask
from asr.sequence.trainer import build_model, make_optimizer, set_gradients

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:RNN module weights")]  # a cell's weights are its own

FORWARD = {"bidirectional": False, "batch_norm": "none"}
STACKS: dict[str, dict[str, Any]] = {
    "tcn": {"name": "tcn", "num_layers": 3, "hidden_size": 8, "kernel_size": 3},
    "lstm": {"name": "lstm", "num_layers": 1, "hidden_size": 8, **FORWARD},
    "gru": {"name": "gru", "num_layers": 1, "hidden_size": 8, **FORWARD},
    "rnn": {"name": "rnn", "num_layers": 1, "hidden_size": 8, "activation": "tanh", **FORWARD},
    "dilated_rnn": {"name": "dilated", "cell": "rnn", "num_layers": 4, "hidden_size": 8, **FORWARD},
    "dilated_gru": {"name": "dilated", "cell": "gru", "num_layers": 4, "hidden_size": 8, **FORWARD},
    "diagonal": {"name": "diagonal", "num_layers": 2, "hidden_size": 8, **FORWARD},
    "phased_lstm": {"name": "phased_lstm", "num_layers": 1, "hidden_size": 8},
}


def updates(stack: str, recorded: bool) -> tuple[list[float], torch.nn.Module]:
    case = Case.model_validate(
        {
            "options": {"length": 20},
            "stack": STACKS[stack],
            "optim": {"name": "sgd", "learning_rate": 0.1, "gradient_clip": 1.0},
        }
    )
    task = tasks.build("adding", case, "test")
    assert isinstance(task, SupervisedTask)
    torch.manual_seed(1)
    model = build_model(task, case).cuda().train()
    optimizer = make_optimizer(model.parameters(), case.optim)

    def compute(examples: Examples) -> torch.Tensor:
        return set_gradients(model, task.loss(model(examples), examples), case.optim)

    step = Recorder(compute, model) if recorded else compute
    losses = []
    for examples in batches(task):
        losses.append(step(examples.to(torch.device("cuda"))))
        optimizer.step()
    return torch.stack(losses).tolist(), model


def batches(task: SupervisedTask) -> Iterator[Examples]:
    """Of two sizes, the rarer one as a last batch of an epoch."""
    generator = torch.Generator().manual_seed(1)
    full, short = task.batches(16, generator), task.batches(5, generator)
    for _ in range(3):
        for _ in range(5):
            yield next(full)
        yield next(short)


@pytest.mark.parametrize("stack", STACKS)
def test_replayed_updates_are_the_usual_ones(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    usual, model = updates(stack, recorded=False)
    replayed, other = updates(stack, recorded=True)
    assert replayed == pytest.approx(usual, rel=1e-3)
    assert usual[-1] < usual[0]
    for own, others in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, others, rtol=1e-3, atol=1e-4)
