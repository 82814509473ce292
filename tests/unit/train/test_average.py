"""The moving average of weights."""

import torch

from asr.train.average import WeightAverage


def test_follows_the_recurrence_and_swaps_back() -> None:
    model = torch.nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.9)
    expected = torch.ones(2)
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(2.0 * step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(average.tensors["weight"], expected)
    assert "num_batches_tracked" not in average.tensors
    average.swap(model)
    assert torch.allclose(model.weight, expected)
    assert torch.allclose(average.tensors["weight"], torch.full((2,), 199.0))
    average.swap(model)
    assert torch.allclose(model.weight, torch.full((2,), 199.0))
