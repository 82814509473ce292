"""Mixed corpora: shares as stated, every utterance evenly often, batches within bounds, and nothing new by default."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config.schema import Data
from asr.data.loader import _times_before, utterance_seed
from asr.data.mixture import Mixture
from asr.data.plan import BatchPlan

corpora = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=2, max_size=4)
weights = st.lists(st.floats(0.1, 8.0), min_size=4, max_size=4)


def made(lengths: list[list[int]], **settings: object) -> tuple[np.ndarray, np.ndarray, Mixture]:
    """Corpora one after the other; gives lengths, which corpus each is of, and the mixture."""
    num_samples = np.array([n for corpus in lengths for n in corpus], dtype=np.int64)
    parts = np.repeat(np.arange(len(lengths)), [len(corpus) for corpus in lengths])
    defaults: dict[str, object] = {"weights": [1.0] * len(lengths), "temperature": 1.0, "seed": 3}
    return num_samples, parts, Mixture(num_samples, parts, **(defaults | settings))  # type: ignore[arg-type]


def expected_counts(lengths: list[list[int]], weights: list[float], temperature: float) -> list[int]:
    """Places of each corpus in an epoch, by the definition."""
    hours = [sum(corpus) for corpus in lengths]
    wanted = [w * h ** (1 / temperature) for w, h in zip(weights, hours, strict=False)]
    return [
        max(1, round(len(corpus) * (sum(hours) * share / sum(wanted)) / h))
        for corpus, share, h in zip(lengths, wanted, hours, strict=True)
    ]


@given(corpora, weights, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_shares_and_evenness(lengths: list[list[int]], weights: list[float], temperature: float) -> None:
    weights = weights[: len(lengths)]
    num_samples, parts, mixture = made(lengths, weights=weights, temperature=temperature)
    expected = expected_counts(lengths, weights, temperature)
    for epoch in (0, 1, 7):
        drawn = mixture.draw(epoch)
        assert np.bincount(parts[drawn], minlength=len(lengths)).tolist() == expected
        assert (num_samples[drawn] <= mixture.longest).all()
        assert np.array_equal(mixture.draw(epoch), drawn)
        if not mixture.repeats:
            assert max(Counter(drawn.tolist()).values()) == 1
    for part, corpus in enumerate(lengths):
        n, k = len(corpus), expected[part]
        times = Counter(i for epoch in range(n) for i in mixture.draw(epoch).tolist() if parts[i] == part)
        # n epochs have n * k places for n utterances: each of them k times, exactly.
        assert set(times.values()) == {k}
        assert len(times) == n
        assert mixture.rates[part] == float(Fraction(k, n))


@given(corpora, weights, st.integers(0, 3))
def test_batches_keep_their_bounds(lengths: list[list[int]], weights: list[float], epoch: int) -> None:
    num_samples, _, mixture = made(lengths, weights=weights[: len(lengths)])
    plan = BatchPlan(
        num_samples, seed=1, batch_samples=1000, max_items=16, jitter=0.1, sorta_grad=True, mixture=mixture
    )
    batches = plan.batches(epoch)
    assert len(batches) == len(plan)
    assert sorted(np.concatenate(batches)) == sorted(mixture.draw(epoch))
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) * num_samples[batch].max() <= 1000
    if epoch == 0:
        longest = [num_samples[batch].max() for batch in batches]
        assert longest == sorted(longest)


def test_an_epoch_is_as_long_as_the_corpora() -> None:
    random = np.random.default_rng(0)
    lengths = [random.integers(50, 300, n).tolist() for n in (5000, 500, 100)]
    num_samples, parts, mixture = made(lengths, weights=[1.0, 2.0, 1.0], temperature=2.0)
    audio = np.array([sum(corpus) for corpus in lengths])
    shares = np.array([1.0, 2.0, 1.0]) * np.sqrt(audio)
    shares /= shares.sum()
    assert np.abs(mixture.shares - shares).max() < 1e-12
    for epoch in range(4):
        drawn = mixture.draw(epoch)
        got = np.bincount(parts[drawn], weights=num_samples[drawn])
        assert np.abs(got / audio.sum() - shares).max() < 0.01


def test_epochs_and_seeds_differ() -> None:
    lengths = [list(range(100, 300)), list(range(100, 150))]
    _, _, mixture = made(lengths, weights=[1.0, 3.0])
    _, _, other = made(lengths, weights=[1.0, 3.0], seed=4)
    assert sorted(mixture.draw(1)) != sorted(mixture.draw(2))
    assert sorted(mixture.draw(1)) != sorted(other.draw(1))


def test_natural_weights_draw_each_utterance_once() -> None:
    num_samples, _, mixture = made([[5, 3, 9], [4, 4]], weights=[2.0, 2.0])
    assert sorted(mixture.draw(3)) == [0, 1, 2, 3, 4]
    assert not mixture.repeats
    assert mixture.longest.tolist() == [3, 5, 9, 4, 4]
    assert num_samples[mixture.draw(0)].tolist() == [3, 5, 9, 4, 4]


def test_a_corpus_without_utterances_has_no_share() -> None:
    num_samples = np.array([5, 7], dtype=np.int64)
    mixture = Mixture(num_samples, np.array([1, 1]), weights=[1.0, 1.0], temperature=3.0, seed=0)
    assert mixture.shares.tolist() == [0.0, 1.0]
    assert sorted(mixture.draw(0)) == [0, 1]


def test_copies_are_not_augmented_alike() -> None:
    times = _times_before([np.array([4, 2, 4]), np.array([2, 9]), np.array([4])])
    assert [t.tolist() for t in times] == [[0, 0, 1], [1, 0], [2]]
    seeds = {utterance_seed(1, 2, "a", k) for k in range(3)}
    assert len(seeds) == 3
    assert utterance_seed(1, 2, "a", 0) == utterance_seed(1, 2, "a")


# The first batches of a plan without a mixture, as they were before there were mixtures.
BEFORE = {
    0: [[16, 2, 15, 17, 9, 14, 18], [10, 7, 11, 13], [4, 5, 12], [6, 0], [1, 3], [8, 19]],
    1: [[16, 2, 15, 17, 9, 14, 18], [10, 7, 13, 11], [19, 8], [5, 4, 12], [3, 1], [6, 0]],
}


def test_default_plan_is_as_before() -> None:
    num_samples = np.random.default_rng(5).integers(50, 400, 20)
    plan = BatchPlan(num_samples, seed=1, batch_samples=1200, max_items=8, jitter=0.1, sorta_grad=True)
    assert [batch.tolist() for batch in plan.batches(0)] == BEFORE[0]
    assert [batch.tolist() for batch in plan.batches(1)] == BEFORE[1]


def test_settings() -> None:
    assert not Data(train=("a", "b")).is_mixed
    assert not Data(train=("a", "b"), weights={"a": 2.0, "b": 2.0}).is_mixed
    assert not Data(train=("a",), temperature=2.0).is_mixed
    assert Data(train=("a", "b"), weights={"a": 2.0}).is_mixed
    assert Data(train=("a", "b"), temperature=2.0).is_mixed
    with pytest.raises(ValueError, match=r"weights: got the split 'trian', data\.train has train; did you mean train"):
        Data(weights={"trian": 2.0})
    with pytest.raises(ValueError, match="greater than 0"):
        Data(weights={"train": 0.0})
