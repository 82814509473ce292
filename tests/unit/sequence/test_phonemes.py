"""The synthetic phonemes: what is in an utterance, and that the recogniser's parts can learn them."""

import numpy as np
import pytest

from asr.errors import ConfigError
from asr.sequence.report import Report
from asr.sequence.settings import Case
from asr.sequence.tasks.phonemes import NUM_BANDS, Options, PhonemeModel, Phonemes, build, make_corpus


def test_utterances_have_phonemes_that_fit_their_frames() -> None:
    options = Options(num_train=80, num_test=20)
    corpus, again = make_corpus(options), make_corpus(options)
    assert len(corpus) == 100
    assert all(np.array_equal(a.features, b.features) for a, b in zip(corpus, again, strict=True))
    for utterance in corpus:
        assert 4 <= len(utterance.phonemes) <= 15
        assert set(utterance.phonemes) <= set(range(1, 13))  # 0 is CTC's blank
        frames, bands = utterance.features.shape
        assert bands == NUM_BANDS
        assert 4 * len(utterance.phonemes) <= frames <= 23 * len(utterance.phonemes) + 5


def test_the_first_epoch_goes_by_length_if_it_is_asked_to() -> None:
    import torch

    for sorta_grad in (True, False):
        task = build(Options(num_train=40, num_test=5, sorta_grad=sorta_grad), None)  # type: ignore[arg-type]
        batches = task._batches(4, torch.Generator().manual_seed(0))
        longest = [max(len(u.features) for u in next(batches)) for _ in range(10)]
        assert (longest == sorted(longest)) is sorta_grad
        later = [max(len(u.features) for u in next(batches)) for _ in range(10)]
        assert later != sorted(later)


def test_a_small_net_learns_few_phonemes() -> None:
    options = {"num_phonemes": 2, "num_train": 200, "num_test": 20, "noise": (0.0, 0.0)}
    case = Case.model_validate(
        {
            "options": options,
            "stack": {"name": "rnn", "num_layers": 1, "hidden_size": 32},
            "optim": {"name": "adam", "learning_rate": 0.01},
            "batch_size": 20,
            "steps": 60,
        }
    )
    task = Phonemes(Options.model_validate(options))
    with Report("test", task.figure, case.steps) as report:
        outcome = task.run(case, report)
    assert [step for step, *_ in outcome.curve] == [10, 20, 30, 40, 50, 60]
    assert outcome.value < 0.1
    assert outcome.curve[-1][1] < 0.2 * outcome.curve[0][1]
    assert outcome.figures["after epoch 6"] == outcome.value


def test_a_missing_stack_is_said() -> None:
    with pytest.raises(ConfigError, match="stack: missing"):
        PhonemeModel(Case(), Options())
