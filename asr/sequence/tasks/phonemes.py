"""Synthetic phonemes with CTC: Deep Speech 2's claims (arXiv 1512.02595, sections 3.2 to 3.5) in minutes.

Each phoneme is an onset, which a group of phonemes shares, and then what tells it apart: one or two formants. A speaker
shifts the bands and the rate; some utterances are noisy. Shifts and noise make convolution over frequency pay. Shared
onsets make the future matter, yet CTC lets a net answer late, so that it need not look ahead for them. Coarticulation
asks for more: as a consonant pulls the formants of the vowel before it, the next onset moves a phoneme's.

The model is the recogniser's: its front end, a stack, its CTC head and loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from asr import stacks
from asr.config.fields import NonNegativeFloat, PositiveInt, Section
from asr.config.schema import ConvLayer
from asr.decode.greedy import greedy
from asr.errors import ConfigError
from asr.heads.ctc import CtcHead, ctc_loss
from asr.metrics.error_rates import Edits, word_edits
from asr.nn.cells import RnnCell
from asr.nn.cells.rnn import set_vanishing_regularizer
from asr.nn.front_end import ConvFrontEnd
from asr.nn.recurrent_layer import RecurrentLayer
from asr.sequence.report import Report
from asr.sequence.settings import SCHEDULE, Case, Data
from asr.sequence.task import Outcome, Task
from asr.sequence.trainer import Curve, make_optimizer, update

NUM_BANDS, NUM_ONSETS, ONSET_SHARE, BUMP_WIDTH = 40, 4, 0.45, 1.5
ANNEAL = 1.2  # of the learning rate after each epoch (section 3.3 of Deep Speech 2's own settings)
QUIET, NOISY_SHARE = 0.1, 0.4  # deviation of the noise that is always there; share of noisier utterances
LOCI = np.linspace(-1.0, 1.0, NUM_ONSETS)  # where an onset pulls the formants before it, as places of articulation do
RECURRENT_GAIN = 0.9  # of the orthogonal recurrent matrices under `initialization: he`

UNUSED_SETTINGS = (  # this task looks at its test set after each epoch, and anneals by itself
    "embedding_size",
    "readout_deviation",
    *SCHEDULE,
    "evaluate_every",
    "stop_at_target",
    "device",
    "graph",
)


class Options(Section):
    """Options of synthetic phonemes."""

    num_phonemes: PositiveInt = 12
    num_train: PositiveInt = 2000
    num_test: PositiveInt = 200
    noise: tuple[NonNegativeFloat, NonNegativeFloat] = Field((0.05, 0.4), description="deviations of the noisy ones")
    coarticulation: NonNegativeFloat = Field(
        0.0, description="bands by which the next onset, at the most, moves what tells a phoneme apart; 0: none"
    )
    sorta_grad: bool = Field(True, description="the first epoch by increasing length")
    front_end: Literal["conv2d", "conv1d"] = "conv2d"
    batch_norm: bool = Field(True, description="in the front end; the stack has its own option")
    initialization: Literal["stack", "he"] = Field(
        "stack",
        description="of simple recurrences: their own, or input weights He-normal and recurrent ones 0.9 x orthogonal",
    )


def build(options: Options, data: Data) -> Phonemes:
    """Make the task."""
    return Phonemes(options)


@dataclass(frozen=True, slots=True)
class Utterance:
    """features: (T, 40) float32. phonemes: 1.., as CTC's blank is 0. noisy: or with the usual noise."""

    features: NDArray[np.float32]
    phonemes: list[int]
    noisy: bool


class Phonemes(Task):
    """Features -> phonemes; the figure is the edits of greedy decoding over the phonemes of the test set."""

    figure = "phoneme error rate"
    higher_is_better = False

    def __init__(self, options: Options) -> None:
        self.options = options
        corpus = make_corpus(options)
        self.train, self.test = corpus[: options.num_train], corpus[options.num_train :]

    def run(self, case: Case, report: Report) -> Outcome:
        torch.manual_seed(case.seed)
        generator = torch.Generator().manual_seed(case.seed)
        model = PhonemeModel(case, self.options)
        set_vanishing_regularizer(model, case.optim.vanishing_regularizer)
        optimizer = make_optimizer(model.parameters(), case.optim)
        per_epoch = -(-len(self.train) // case.batch_size)
        curve, step = Curve(report, case.steps, per_epoch, case.seconds), 0
        for step, batch in zip(range(1, case.steps + 1), self._batches(case.batch_size, generator), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = case.optim.learning_rate / ANNEAL ** ((step - 1) // per_epoch)
            loss = model.loss(batch)
            update(model, optimizer, loss, case.optim)
            if curve.due(step, loss):
                curve.add(model.error_rate(self.test))
            if curve.cut_short:
                break
        values = [value for *_, value in curve.points]
        figures = {f"after epoch {i}": value for i, value in enumerate(values, 1)}
        for name, noisy in (("noisy ones", True), ("quiet ones", False)):
            figures[name] = model.error_rate([u for u in self.test if u.noisy is noisy])
        num_parameters = sum(p.numel() for p in model.parameters())
        return Outcome(values[-1], num_parameters, step, curve.points, figures, curve.cut_short)

    def _batches(self, batch_size: int, generator: torch.Generator) -> Iterator[list[Utterance]]:
        by_length = sorted(range(len(self.train)), key=lambda i: len(self.train[i].features))
        order = (
            torch.tensor(by_length) if self.options.sorta_grad else torch.randperm(len(by_length), generator=generator)
        )
        while True:
            for chosen in order.split(batch_size):
                yield [self.train[i] for i in chosen.tolist()]
            order = torch.randperm(len(by_length), generator=generator)


class PhonemeModel(nn.Module):
    """Deep Speech 2 in small: one convolution, the case's stack, the CTC head."""

    def __init__(self, case: Case, options: Options) -> None:
        super().__init__()
        if case.stack is None:
            raise ConfigError("stack: missing; this task needs one, such as stack=rnn")
        two = options.front_end == "conv2d"
        layer = ConvLayer(
            channels=16 if two else 16 * NUM_BANDS // 2,
            time_kernel=11,
            time_stride=2,
            frequency_kernel=11 if two else 1,
            frequency_stride=2 if two else 1,
        )
        self.front_end = ConvFrontEnd(
            num_features=NUM_BANDS, layers=(layer,), kind=options.front_end, batch_norm=options.batch_norm
        )
        self.stack = stacks.build(case.stack, self.front_end.output_size)
        if options.initialization == "he":
            initialize_he(self.stack)
        self.head = CtcHead(
            input_size=self.stack.output_size, num_tokens=options.num_phonemes + 1, dropout=case.readout_dropout
        )

    def forward(self, utterances: list[Utterance]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, S, V) and their lengths (B,)."""
        features = [torch.from_numpy(u.features) for u in utterances]
        padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
        hidden, lengths = self.front_end(padded, torch.tensor([len(f) for f in features]))
        hidden, lengths = self.stack(hidden, lengths)
        return self.head(hidden), lengths

    def loss(self, utterances: list[Utterance]) -> Tensor:
        """CTC, summed over an utterance's frames and averaged over utterances."""
        log_probs, lengths = self(utterances)
        targets = [torch.tensor(u.phonemes) for u in utterances]
        padded = nn.utils.rnn.pad_sequence(targets, batch_first=True)
        return ctc_loss(log_probs, lengths, padded, torch.tensor([len(t) for t in targets])).mean()

    @torch.no_grad()
    def error_rate(self, utterances: list[Utterance]) -> float:
        """Edits of greedy decoding, summed, over the phonemes."""
        self.eval()
        paths = greedy(*self(utterances))
        self.train()
        edits = (
            word_edits(" ".join(map(str, u.phonemes)), " ".join(map(str, path.ids)))
            for u, path in zip(utterances, paths, strict=True)
        )
        return sum(edits, Edits()).rate


@torch.no_grad()
def initialize_he(stack: nn.Module) -> None:
    """Draw the weights of simple recurrent layers so that deep nets without batch norm pass signals on.

    The stacks' own input weights, U(+-1 / sqrt(inputs)), shrink a signal in each layer of rectified units.

    Raises:
        ConfigError: there is no such layer.
    """
    pairs = [(m.projection, m.cell) for m in stack.modules() if isinstance(m, RecurrentLayer)]
    simple = [(projection, cell) for projection, cell in pairs if isinstance(cell, RnnCell) and not cell.diagonal]
    if not simple:
        raise ConfigError("options.initialization: got he, expected a stack of simple recurrences, such as stack=rnn")
    for projection, cell in simple:
        nn.init.kaiming_normal_(projection.weight, nonlinearity="relu")
        cell.recurrent.mul_(RECURRENT_GAIN)


def make_corpus(options: Options) -> list[Utterance]:
    """Training and test utterances, the same ones each time."""
    random = np.random.default_rng(20161202)
    onsets = np.stack([_bumps(random, 1) for _ in range(NUM_ONSETS)])
    tails = np.stack([_bumps(random, 1 + i % 2) for i in range(options.num_phonemes)])
    templates = (onsets, tails)
    return [_utterance(options, templates, random) for _ in range(options.num_train + options.num_test)]


def _bumps(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(40,) `count` formants."""
    bands = np.arange(NUM_BANDS)
    centres = random.uniform(4, NUM_BANDS - 5, count)
    return np.exp(-(((bands[:, None] - centres) / BUMP_WIDTH) ** 2)).sum(1)


def _utterance(
    options: Options, templates: tuple[NDArray[np.float64], NDArray[np.float64]], random: np.random.Generator
) -> Utterance:
    onsets, tails = templates
    phonemes = random.integers(options.num_phonemes, size=random.integers(4, 16))
    rate, shift = random.uniform(0.8, 1.3), random.normal()
    bands = np.arange(NUM_BANDS)
    pieces = [np.zeros((int(random.integers(0, 6)), NUM_BANDS))]
    for phoneme, following in zip(phonemes, [*phonemes[1:], None], strict=True):
        frames = max(4, round(random.integers(4, 14) * rate))
        begins = np.arange(frames) < ONSET_SHARE * frames
        moved = 0.0 if following is None else options.coarticulation * LOCI[following % NUM_ONSETS]
        tail = np.interp(bands - moved, bands, tails[phoneme])
        shape = np.where(begins[:, None], onsets[phoneme % NUM_ONSETS], tail)
        envelope = np.sin(np.pi * (np.arange(frames) + 0.5) / frames)
        pieces += [envelope[:, None] * shape, np.zeros((int(random.integers(0, 6)), NUM_BANDS))]
    clean = np.concatenate(pieces)
    shifted = np.stack([np.interp(bands - shift, bands, frame) for frame in clean])
    noisy = random.random() < NOISY_SHARE
    deviation = random.uniform(*options.noise) if noisy else 0.0
    features = shifted + random.normal(scale=np.hypot(QUIET, deviation), size=shifted.shape)
    return Utterance(features.astype(np.float32), [int(p) + 1 for p in phonemes], noisy)
