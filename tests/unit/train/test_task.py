"""The training step where there is nothing to train on, and validation of nothing."""

import math

import pytest
import torch

from asr import model
from asr.config.schema import Config, Optim, Text
from asr.text.tokenizer import build_tokenizer
from asr.train.task import CtcTask
from asr.types import Batch

CONFIG = Config.model_validate(
    {
        "features": {"num_mels": 12},
        "front_end": {"layers": [{"channels": 3, "time_kernel": 3, "frequency_kernel": 3, "frequency_stride": 2}]},
        "stack": {"name": "gru", "num_layers": 1, "hidden_size": 8},
    }
)


@pytest.fixture
def task() -> CtcTask:
    tokenizer = build_tokenizer(Text(), ["abc"])
    speech_model = model.build(CONFIG, tokenizer.num_tokens)
    return CtcTask(speech_model, tokenizer, Optim(), seed=1, steps_per_epoch=1, total_steps=1)


def stand_in() -> Batch:
    """What a batch of unreadable utterances holds."""
    zero = torch.zeros(1, dtype=torch.int64)
    return Batch(torch.zeros(1, 1), zero, torch.zeros(1, 0, dtype=torch.int64), zero, zero, (), (), 0.0, 1)


def test_a_step_on_nothing_has_no_loss_and_no_gradient(task: CtcTask) -> None:
    loss = task.training_step(stand_in(), 0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    gradients = [parameter.grad for parameter in task.model.parameters()]
    assert gradients
    assert all(gradient is not None and bool((gradient == 0).all()) for gradient in gradients)
    assert all(bool(tensor.isfinite().all()) for tensor in task.model.state_dict().values())


def test_validation_of_nothing_is_no_perfect_score(task: CtcTask, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **kwargs: logged.update({name: value}))
    task.eval()
    task.on_validation_epoch_start()
    task.validation_step(stand_in(), 0)
    task.on_validation_epoch_end()
    assert logged.keys() == {"validation/wer", "validation/cer"}
    assert all(math.isnan(value) for value in logged.values())
