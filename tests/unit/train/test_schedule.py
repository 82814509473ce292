"""Learning rates at the points that define each schedule."""

import pytest

from asr.config.schema import Optim
from asr.train.schedule import learning_rate


def rate(optim: Optim, step: int) -> float:
    return learning_rate(optim, step=step, steps_per_epoch=100, total_steps=1000)


def test_cosine_warms_up_and_decays_to_its_final_fraction() -> None:
    optim = Optim(learning_rate=1e-3, schedule="cosine", warmup_steps=50, final_fraction=0.1)
    assert rate(optim, 0) == pytest.approx(1e-3 / 50)
    assert rate(optim, 49) == pytest.approx(1e-3)
    assert rate(optim, 525) == pytest.approx(0.55e-3)
    assert rate(optim, 1000) == pytest.approx(1e-4)
    assert rate(optim, 5000) == pytest.approx(1e-4)


def test_anneal_divides_after_each_epoch() -> None:
    """Deep Speech 2, section 4: 1.2 after each epoch."""
    optim = Optim(learning_rate=3e-4, schedule="anneal", anneal_factor=1.2, warmup_steps=0)
    assert [rate(optim, step) for step in (0, 99, 100, 299, 300)] == pytest.approx(
        [3e-4, 3e-4, 3e-4 / 1.2, 3e-4 / 1.44, 3e-4 / 1.728]
    )


def test_constant() -> None:
    optim = Optim(learning_rate=0.1, schedule="constant", warmup_steps=2)
    assert [rate(optim, step) for step in (0, 1, 2, 900)] == pytest.approx([0.05, 0.1, 0.1, 0.1])
