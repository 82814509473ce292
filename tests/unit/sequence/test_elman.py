"""Elman's simulations: the streams, their figures on made-up predictions, and one-step training against autograd."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from asr.errors import ConfigError
from asr.sequence import tasks
from asr.sequence.report import Report
from asr.sequence.settings import Case, Optim
from asr.sequence.tasks import _elman
from asr.sequence.tasks.elman import LEXICON, NOUNS, SENTENCES, VERBS, Classes, Letters, Words, Xor, agreement


def test_training_goes_back_through_one_step_only() -> None:
    generator = np.random.default_rng(0)
    inputs, targets = generator.random((7, 3)), generator.random((7, 2))
    hidden_weights, output_weights = generator.normal(size=(4, 8)), generator.normal(size=(2, 5))
    v, w = (torch.tensor(x, requires_grad=True) for x in (hidden_weights, output_weights))
    one, losses = torch.ones(1, dtype=torch.float64), []
    for _ in range(2):
        losses.clear()
        context = torch.full((4,), 0.5, dtype=torch.float64)
        for frame, target in zip(torch.tensor(inputs), torch.tensor(targets), strict=True):
            hidden = torch.sigmoid(v @ torch.cat((frame, context, one)))
            errors = torch.sigmoid(w @ torch.cat((hidden, one))) - target
            gradients = torch.autograd.grad(0.5 * errors.square().sum(), (v, w))
            with torch.no_grad():
                v -= 0.3 * gradients[0]
                w -= 0.3 * gradients[1]
            losses.append(float(errors.detach().square().mean()))
            context = hidden.detach()  # an input, not a path
    loss = _elman.train(inputs, targets, hidden_weights, output_weights, 0.3, 2)
    assert np.abs(hidden_weights - v.detach().numpy()).max() < 1e-12
    assert np.abs(output_weights - w.detach().numpy()).max() < 1e-12
    assert loss == pytest.approx(float(np.mean(losses)), rel=1e-12)

    hidden, outputs = _elman.predict(inputs, hidden_weights, output_weights)
    context = np.full(4, 0.5)
    for t in range(7):
        context = 1 / (1 + np.exp(-hidden_weights @ [*inputs[t], *context, 1]))
        assert np.abs(hidden[t] - context).max() < 1e-12
        assert np.abs(outputs[t] - 1 / (1 + np.exp(-output_weights @ [*context, 1]))).max() < 1e-12


def test_xor() -> None:
    stream = Xor().stream(500, np.random.default_rng(1))
    bits = stream.frames[:, 0]
    assert len(bits) == 1500
    assert np.array_equal(bits[2::3], (bits[::3] != bits[1::3]).astype(float))
    assert bits.mean() == pytest.approx(0.5, abs=0.05)
    blind = np.full((1499, 1), 0.5)
    assert Xor().judge(stream, blind, blind)[0] == Xor.chance
    knowing = np.where(stream.places[1:, None] == 2, stream.frames[1:], 0.5)
    value, figures = Xor().judge(stream, blind, knowing)
    assert value == 0.0
    assert figures["error at bit 1"] == 0.25


def test_letters() -> None:
    """The codes are the paper's table; knowing all but the consonant's identity is the best that can be done."""
    stream = Letters().stream(600, np.random.default_rng(1))
    text = "".join(LETTER[tuple(int(x) for x in frame)] for frame in stream.frames)
    assert set(text.replace("ba", "").replace("dii", "").replace("guuu", "")) == set()
    assert text.count("guuu") == pytest.approx(200, abs=40)
    assert [text[i] for i in np.flatnonzero(stream.places == 0)] == [c for c in text if c in "bdg"]
    best = stream.frames[1:].copy()
    best[stream.places[1:] == 0, 3:5] = 1 / 3
    value, figures = Letters().judge(stream, best, best)
    assert value == 0.0
    assert figures["the others' smallest"] == pytest.approx(np.sqrt(2 / 9), abs=0.02)
    wrong = best.copy()
    wrong[:, 0] = 0.5  # not even that a consonant comes
    assert Letters().judge(stream, wrong, wrong)[0] > 1


LETTER = {
    (1, 0, 1, 0, 0, 1): "b", (1, 0, 1, 1, 0, 1): "d", (1, 0, 1, 0, 1, 1): "g",
    (0, 1, 0, 0, 1, 1): "a", (0, 1, 0, 1, 0, 1): "i", (0, 1, 0, 1, 1, 1): "u",
}  # fmt: skip


def test_words() -> None:
    task = Words()
    stream = task.stream(200, np.random.default_rng(1))
    assert len(set(LEXICON)) == 15
    assert len({tuple(code) for code in task.codes.values()}) == 26
    starts = [*np.flatnonzero(stream.places == 0), len(stream.names)]
    words = ["".join(stream.names[a:b]) for a, b in pairwise(starts)]
    assert set(words) == set(LEXICON)
    assert len(words) == pytest.approx(1270, abs=60)  # as in the paper
    assert all(task.codes[name] == frame for name, frame in zip(stream.names, stream.frames.tolist(), strict=True))
    outputs = stream.frames[1:] + np.where(stream.places[1:, None] == 0, 0.4, 0.1)
    assert task.judge(stream, outputs, outputs)[0] == pytest.approx(4.0)


def test_classes() -> None:
    task = Classes()
    stream = task.stream(3000, np.random.default_rng(1))
    assert len(task.words) == len(set(task.words)) == 29
    starts = [*np.flatnonzero(stream.places == 0), len(stream.names)]
    sentences = {tuple(task.groups[name] for name in stream.names[a:b]) for a, b in pairwise(starts)}
    assert sentences == set(SENTENCES)
    assert {kind for sentence in SENTENCES for kind in sentence} == {*NOUNS, *VERBS}
    assert np.array_equal(stream.frames.argmax(1), [task.words.index(name) for name in stream.names])

    kinds = [*NOUNS, *VERBS]
    places = np.array([kinds.index(task.groups[name]) for name in stream.names[:-1]])
    noise = np.random.default_rng(2).normal(size=(len(places), 3))
    tidy = np.eye(len(kinds))[places] + 5.0 * (places < len(NOUNS))[:, None] + 0.1 * np.hstack((noise,) * 4)
    value, figures = task.judge(stream, tidy, tidy)
    assert value == 1.0
    assert figures["nouns and verbs on their side of the first fork"] == 1.0
    assert task.judge(stream, noise, noise)[0] < 0.5
    assert task.chance == pytest.approx(24 * 2 / 26 / 28, rel=0.1)


def test_agreement_takes_either_side_for_either_group() -> None:
    points = np.array([[0.0], [0.1], [5.0], [5.1], [5.2]])
    assert agreement(points, np.array([True, True, False, False, False])) == 1.0
    assert agreement(points, np.array([False, True, True, True, True])) == 0.8


def test_a_run_is_decided_by_its_seed_and_a_wrong_simulation_is_refused() -> None:
    case = Case(
        options={"simulation": "xor", "size": 50, "num_hidden": 2}, steps=30, evaluate_every=20,
        optim=Optim(name="sgd", learning_rate=0.1),
    )  # fmt: skip
    task = tasks.build("elman", case, "test")
    with Report("test", task.figure, case.steps) as report:
        first, second = task.run(case, report), task.run(case, report)
        other = task.run(case.model_copy(update={"seed": 2}), report)
    assert first == second
    assert first.curve != other.curve
    assert [step for step, *_ in first.curve] == [20, 30]
    assert first.parameters == 2 * (1 + 2 + 1) + (2 + 1)
    with pytest.raises(ConfigError, match="simulation"):
        tasks.build("elman", Case(options={"simulation": "sentences"}, optim=Optim(name="sgd")), "test")
