"""Batch plans: every utterance once, within bounds, a pure function of seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config.schema import Data
from asr.data.plan import BatchPlan
from asr.errors import ConfigError

lengths = st.lists(st.integers(1, 500), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int64))


def plan(num_samples: np.ndarray, **settings: object) -> BatchPlan:
    defaults = {"seed": 1, "batch_samples": 1000, "max_items": 16, "jitter": 0.1, "sorta_grad": True}
    return BatchPlan(num_samples, **(defaults | settings))


@given(lengths, st.integers(0, 3))
def test_each_utterance_once_and_costs_bounded(num_samples: np.ndarray, epoch: int) -> None:
    made = plan(num_samples)
    batches = made.batches(epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(num_samples)))
    assert len(batches) == len(made)
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) * num_samples[batch].max() <= 1000


@given(lengths)
def test_pure_function_of_seed_and_epoch(num_samples: np.ndarray) -> None:
    first, second = plan(num_samples), plan(num_samples)
    second.batches(5)  # what was asked before does not matter
    for a, b in zip(first.batches(2), second.batches(2), strict=True):
        assert np.array_equal(a, b)


def test_sorta_grad_then_shuffled() -> None:
    num_samples = np.random.default_rng(0).integers(10, 200, 300)
    made = plan(num_samples)
    longest = [num_samples[batch].max() for batch in made.batches(0)]
    assert longest == sorted(longest)
    for epoch in (1, 2):
        longest = [num_samples[batch].max() for batch in made.batches(epoch)]
        assert longest != sorted(longest)
    assert {frozenset(b.tolist()) for b in made.batches(1)} != {frozenset(b.tolist()) for b in made.batches(2)}
    assert plan(num_samples, seed=2).batches(1)[0].tolist() != made.batches(1)[0].tolist()


def test_padding_is_small_on_speech_like_lengths() -> None:
    num_samples = (16000 * np.random.default_rng(0).gamma(6, 2, 5000).clip(1, 34)).astype(np.int64)
    made = plan(num_samples, batch_samples=16000 * 320, max_items=512, jitter=Data().length_jitter)
    batches = made.batches(1)
    padded = sum(len(batch) * num_samples[batch].max() for batch in batches)
    assert made.padding_share(1) == pytest.approx(1 - num_samples.sum() / padded)
    assert made.padding_share(1) < 0.05


def test_too_long_and_empty_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_seconds: the longest utterance has 2000 samples"):
        plan(np.array([10, 2000]))
    with pytest.raises(ConfigError, match="no utterance is left"):
        plan(np.array([], dtype=np.int64))
