"""The synthetic phonemes: what is in an utterance, and that the recogniser's parts can learn them."""

from typing import Any

import numpy as np
import pytest
import torch

from asr.errors import ConfigError
from asr.sequence.report import Report
from asr.sequence.settings import Case
from asr.sequence.tasks import check_options
from asr.sequence.tasks.phonemes import NUM_BANDS, Options, PhonemeModel, Phonemes, build, make_corpus

SMALL_RNN = {"name": "rnn", "num_layers": 2, "hidden_size": 32}


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


def test_noise_is_where_it_is_said_to_be() -> None:
    corpus = make_corpus(Options(num_train=190, num_test=10, noise=(5.0, 5.0)))
    assert 0.3 < np.mean([u.noisy for u in corpus]) < 0.5
    for utterance in corpus:
        assert (float(utterance.features.std()) > 4.0) is utterance.noisy


def test_the_next_onset_moves_the_formants_before_it() -> None:
    options = {"num_train": 30, "num_test": 1, "noise": (0.0, 0.0)}
    plain, moved = make_corpus(Options(**options)), make_corpus(Options(**options, coarticulation=2.0))
    for before, after in zip(plain, moved, strict=True):
        assert before.phonemes == after.phonemes
        difference = after.features - before.features  # both have the same noise
        changed = np.abs(difference).sum(1)
        assert (changed > 0.1).any()
        assert changed[-4:].max() == 0  # nothing follows the last phoneme, which has at least four frames
        assert (changed[:2] < 1e-5).all()  # the first one's onset stays
        assert np.abs(difference.sum(1)).max() < 0.1 * changed.max()  # energy goes elsewhere, not away


def test_the_first_epoch_goes_by_length_if_it_is_asked_to() -> None:
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
    counts = {noisy: sum(len(u.phonemes) for u in task.test if u.noisy is noisy) for noisy in (True, False)}
    assert min(counts.values()) > 0
    edits = outcome.figures["noisy ones"] * counts[True] + outcome.figures["quiet ones"] * counts[False]
    assert edits == pytest.approx(outcome.value * sum(counts.values()))


def test_a_missing_stack_is_said() -> None:
    with pytest.raises(ConfigError, match="stack: missing"):
        PhonemeModel(Case(), Options())


def test_he_s_weights_take_the_place_of_the_stack_s_own() -> None:
    torch.manual_seed(0)
    case = Case.model_validate({"stack": SMALL_RNN})
    for layer in PhonemeModel(case, Options(initialization="he")).stack.layers:  # type: ignore[union-attr]
        weight, recurrent = layer.projection.weight.detach(), layer.cell.recurrent.detach()
        assert float(weight.std()) == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.1)
        for matrix in recurrent.double():
            assert float((matrix @ matrix.T - 0.81 * torch.eye(32)).abs().max()) < 1e-5
    gates = Case.model_validate({"stack": SMALL_RNN | {"name": "gru"}})
    with pytest.raises(ConfigError, match="got he, expected a stack of simple recurrences"):
        PhonemeModel(gates, Options(initialization="he"))


def test_shared_settings_are_honoured_or_refused() -> None:
    assert (
        PhonemeModel(Case.model_validate({"stack": SMALL_RNN, "readout_dropout": 0.3}), Options()).head.dropout.p == 0.3
    )
    task = Phonemes(Options(num_train=10, num_test=5))
    gates = Case.model_validate({"stack": SMALL_RNN | {"name": "gru"}, "optim": {"vanishing_regularizer": 1.0}})
    with Report("test", task.figure, 1) as report, pytest.raises(ConfigError, match="not defined for gates"):
        task.run(gates, report)


@pytest.mark.parametrize("task", ["phonemes", "reversal"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"optim": {"reduce_factor": 0.5}},
            r"config.yaml: optim.reduce_factor: got 0.5, but the task \w+ does not use",
        ),
        ({"embedding_size": 5}, "embedding_size: got 5"),
        ({"stop_at_target": True}, "stop_at_target: got True"),
        ({"device": "cuda"}, "device: got 'cuda'"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(task: str, given: dict[str, Any], said: str) -> None:
    check_options(task, Case.model_validate({"evaluate_every": 100}), "config.yaml")
    with pytest.raises(ConfigError, match=said):
        check_options(task, Case.model_validate(given), "config.yaml")
