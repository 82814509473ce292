"""What is summed on the device equals what a loop over frames finds, and nothing in a step waits for the device."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from asr.train import measures
from asr.train.diagnosis import Window
from asr.train.measures import Measures

BOUNDS = (8000, 16000)
CPU = torch.device("cpu")


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, lengths, losses, audio lengths, target lengths; one utterance of each bucket, a stand-in."""
    random = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(5, 12, 4, generator=random, dtype=torch.float64).log_softmax(-1)
    lengths = torch.tensor([12, 7, 9, 3, 0])
    losses = 5 * torch.rand(5, generator=random, dtype=torch.float64)
    return log_probs, lengths, losses, torch.tensor([20000, 16000, 8000, 1, 0]), torch.tensor([5, 3, 4, 1, 0])


def slow(batches: list[tuple[torch.Tensor, ...]], norms: list[float]) -> Window:
    frames = blanks = 0
    entropy = 0.0
    losses, tokens = [0.0] * 3, [0] * 3
    for log_probs, lengths, costs, audio_lengths, target_lengths in batches:
        for item in range(len(lengths)):
            for frame in range(int(lengths[item])):
                row = log_probs[item, frame].tolist()
                if any(math.isnan(value) for value in row):
                    continue
                frames += 1
                blanks += max(range(4), key=lambda token: row[token]) == 0
                entropy -= sum(math.exp(value) * value for value in row)
            bucket = sum(int(audio_lengths[item]) > bound for bound in BOUNDS)
            if target_lengths[item] and math.isfinite(costs[item]):
                losses[bucket] += float(costs[item])
                tokens[bucket] += int(target_lengths[item])
    finite = [norm for norm in norms if math.isfinite(norm)]
    return Window(
        step=7,
        blank_rate=blanks / frames,
        spoken=(frames - blanks) / sum(tokens),
        entropy=entropy / frames,
        loss=sum(losses) / sum(tokens),
        gradient_norm=sum(finite) / len(finite),
        loss_by_length=tuple(one / other for one, other in zip(losses, tokens, strict=True)),
    )


def assert_close(one: Window, other: Window) -> None:
    for name in ("step", "blank_rate", "spoken", "entropy", "loss", "gradient_norm", "loss_by_length"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-12), name


def summed(batches: list[tuple[torch.Tensor, ...]], norms: list[float]) -> Measures:
    result = Measures(BOUNDS, CPU)
    for one in batches:
        result.add(*one)
    for norm in norms:
        result.add_gradient_norm(torch.tensor(norm, dtype=torch.float64))
    return result


def test_they_equal_a_loop_over_frames() -> None:
    batches, norms = [batch(1), batch(2), batch(3)], [1.0, 2.0, 6.0]
    assert_close(summed(batches, norms).read(7), slow(batches, norms))


def test_autocast_does_not_round_them() -> None:
    log_probs, *rest = batch(1)
    single = (log_probs.float(), rest[0], rest[1].float() * 100, rest[2], rest[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = summed([single], [1.0]).read(7)
    assert got.loss_by_length == pytest.approx(slow([single], [1.0]).loss_by_length, rel=1e-6)
    assert got.entropy == pytest.approx(slow([single], [1.0]).entropy, rel=1e-6)


def test_padding_changes_nothing() -> None:
    one, other = batch(1), batch(1)
    for item, length in enumerate(other[1]):
        other[0][item, length:] = float("nan") if item % 2 else 1e6
    assert_close(summed([one], [1.0]).read(7), summed([other], [1.0]).read(7))


def test_what_is_not_finite_is_passed_over() -> None:
    spoilt = batch(1)
    spoilt[0][0, 3] = float("nan")
    spoilt[2][1] = float("inf")
    batches, norms = [spoilt, batch(2)], [1.0, float("nan"), 3.0, float("inf")]
    assert_close(summed(batches, norms).read(7), slow(batches, norms))


def test_reading_begins_anew() -> None:
    result = summed([batch(1)], [1.0])
    result.read(3)
    assert math.isnan(result.read(4).loss)
    result.add(*batch(2))
    result.add_gradient_norm(torch.tensor(2.0))
    assert_close(result.read(7), slow([batch(2)], [2.0]))


def test_ranks_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = summed([batch(1)], [4.0]), summed([batch(2)], [4.0])
    monkeypatch.setattr(measures, "sum_over_ranks", lambda sums: sums + other._sums)
    assert_close(mine.read(7), slow([batch(1), batch(2)], [4.0]))


def test_no_step_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever asks for one fails."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = Measures(BOUNDS, CPU)
        result.add(torch.zeros(5, 12, 4), torch.full((5,), 3), torch.zeros(5), torch.full((5,), 9), torch.full((5,), 2))
        result.add_gradient_norm(torch.zeros(()))
        with pytest.raises(Exception, match=r"_local_scalar_dense|item"):
            result.read(1)
