"""Reliability against a loop over words, the fit against scikit-learn's, and what happens at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from asr.metrics.calibration import NUM_BINS, Calibration, fit_confidence, reliability
from asr.types import Word

WORDS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(WORDS)
def test_reliability_counts_each_word_in_its_bin(words: list[tuple[float, bool]]) -> None:
    expected, rows = 0.0, []
    for number in range(NUM_BINS):
        last = number == NUM_BINS - 1
        inside = [(c, ok) for c, ok in words if int(c * NUM_BINS) == number or (last and c * NUM_BINS >= NUM_BINS)]
        if inside:
            confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            expected += len(inside) / len(words) * abs(confidence - accuracy)
            rows.append((confidence, accuracy, len(inside)))
    got = reliability(*zip(*words, strict=True))
    assert got.error == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(list(zip(got.confidence, got.accuracy, got.count, strict=True)), rows, atol=1e-12)


def test_without_words_there_is_no_error_to_speak_of() -> None:
    assert math.isnan(reliability([], []).error)
    assert fit_confidence([], []) == (1.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_most_probable_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.beta(4, 1, 400).clip(1e-4, 1 - 1e-4)
    right = random.random(400) < Calibration(0.6, -0.3).probability(confidence)
    slope, bias = fit_confidence(confidence.tolist(), right.tolist())

    # Platt's targets as weights: each word counts as right with its target, and as wrong with the rest.
    n, m = right.sum(), (~right).sum()
    target = np.where(right, (n + 1) / (n + 2), 1 / (m + 2))
    logit = np.log(confidence / (1 - confidence))[:, None]
    oracle = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
    oracle.fit(np.tile(logit, (2, 1)), np.repeat([1, 0], 400), sample_weight=np.concatenate((target, 1 - target)))
    assert slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert bias == pytest.approx(oracle.intercept_[0], abs=1e-4)


def test_the_fit_undoes_a_distortion() -> None:
    random = np.random.default_rng(0)
    truth = random.beta(3, 1, 20_000)
    right = random.random(20_000) < truth
    told = Calibration(1.8, 0.5).probability(truth)  # overconfident
    slope, bias = fit_confidence(told.tolist(), right.tolist())
    mended = Calibration(slope, bias).probability(told)
    assert reliability(told.tolist(), right.tolist()).error > 0.05
    assert reliability(mended.tolist(), right.tolist()).error < 0.015


@pytest.mark.parametrize("right", [[True] * 50, [False] * 50])
def test_a_set_of_one_kind_makes_no_certainty(right: list[bool]) -> None:
    calibration = Calibration(*fit_confidence(np.linspace(0.5, 1, 50).tolist(), right))
    probability = calibration.probability(np.linspace(0, 1, 11))
    assert ((probability > 0) & (probability < 1)).all()
    assert probability.mean() == pytest.approx(51 / 52 if right[0] else 1 / 52, abs=0.02)


def test_a_higher_confidence_never_becomes_a_lower_one() -> None:
    slope, bias = fit_confidence([0.9] * 50 + [0.1] * 50, [False] * 50 + [True] * 50)
    probability = Calibration(slope, bias).probability([0.1, 0.9])
    assert probability[0] <= probability[1]
    assert probability == pytest.approx([0.5, 0.5], abs=0.05)


def test_times_lose_the_delay_and_stay_in_order() -> None:
    words = (Word("a", 0.02, 0.06, 0.9), Word("b", 1.0, 1.4, 1.0))
    a, b = Calibration(start_delay_seconds=0.1, end_delay_seconds=0.2)(words)
    assert (a.start_seconds, a.end_seconds) == (0.0, 0.0)
    assert (b.start_seconds, b.end_seconds) == (0.9, 1.2)
    assert a.confidence == pytest.approx(0.9, abs=1e-4)
    assert b.confidence == pytest.approx(1.0, abs=1e-3)
