"""Waveform generation (Koutnik, Greff, Gomez and Schmidhuber 2014, section 4.1): one waveform out of nothing.

A net for one sequence; its input is 1 at the first frame, in place of a learned initial state, and 0 after it. The
waveforms are made here, as the paper's recordings are not to be had: `sines`, a sum of four whose periods are mostly
powers of two and so favour clocks of such periods, and `speech_like`, eleven harmonics of a period of 147 samples
under a formant's envelope and a slow modulation, which does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import Examples, Split, SupervisedTask

SINE_PERIODS = (8.0, 32.0, 80.0, 160.0)
SPEECH_PERIOD, NUM_HARMONICS, FORMANT_HARMONIC, FORMANT_WIDTH = 147.0, 11, 4.0, 2.0


class Options(Section):
    """Options of waveform generation."""

    waveform: Literal["sines", "speech_like"] = "sines"
    length: PositiveInt = Field(320, description="samples")


def build(options: Options, data: Data) -> Waveform:
    """Make the task."""
    return Waveform(options)


class Waveform(SupervisedTask):
    """(1, T, 1) an impulse -> (1, T) the waveform; there is no other to test on than the one that is learnt."""

    figure = "mean squared error / variance"
    higher_is_better = False
    chance = 1.0
    input_size, output_size = 1, 1
    readout = "every"

    def __init__(self, options: Options) -> None:
        target = {"sines": sines, "speech_like": speech_like}[options.waveform](options.length)
        impulse = torch.zeros(1, options.length, 1)
        impulse[0, 0] = 1.0
        self.example = Examples(impulse, torch.tensor([options.length]), target[None])

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        while True:
            yield self.example

    def evaluation(self, split: Split) -> Iterable[Examples]:
        return [self.example]

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return (outputs[..., 0] - examples.targets).square().mean()

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        errors = (outputs[..., 0] - examples.targets).square()
        return errors.sum(), (examples.targets - examples.targets.mean()).square().sum()


def sines(length: int) -> Tensor:
    """(length,) in [-1, 1]: equal sines of SINE_PERIODS, each with a phase of its own."""
    times = torch.arange(length, dtype=torch.float64)
    parts = [torch.sin(2 * math.pi * times / period + i) for i, period in enumerate(SINE_PERIODS)]
    return _scaled(torch.stack(parts).sum(0))


def speech_like(length: int) -> Tensor:
    """(length,) in [-1, 1]: harmonics under a formant, modulated once over the whole."""
    times = torch.arange(length, dtype=torch.float64)
    harmonics = torch.arange(1, NUM_HARMONICS + 1, dtype=torch.float64)[:, None]
    levels = torch.exp(-(((harmonics - FORMANT_HARMONIC) / FORMANT_WIDTH) ** 2))
    voiced = (levels * torch.sin(2 * math.pi * harmonics * times / SPEECH_PERIOD + harmonics**2)).sum(0)
    return _scaled(voiced * (1 + 0.5 * torch.sin(2 * math.pi * times / length)))


def _scaled(wave: Tensor) -> Tensor:
    return (wave / wave.abs().max()).float()
