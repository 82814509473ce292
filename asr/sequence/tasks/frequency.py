"""Frequency discrimination (Neil, Pfeiffer and Liu 2016, section 3.1): is the sine's period between 5 and 6 ms?

Half of the sines are; the periods of the others are log-uniform in [1, 100] ms outside of that. A sine lasts U(15, 125)
ms, begins anywhere in the first 125 ms that leaves room for it, has a random phase, and is sampled every millisecond,
ten times as often, or at 15 to 125 random times. Each frame is a sample and its time in ms.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import Classification, Examples, MadeTask

SHORTEST_MS, LONGEST_MS = 15.0, 125.0
WANTED_MS = (5.0, 6.0)
OTHERS_MS = (1.0, 100.0)
TIME_SCALE_MS = 50.0  # a time as a feature is t / 50 ms - 1


class Options(Section):
    """Options of frequency discrimination."""

    sampling: Literal["standard", "high_resolution", "asynchronous"] = "asynchronous"
    time: Literal["stamp", "feature"] = Field(
        "stamp", description="stamp: given to the stack beside the frames, which has to take it; feature: a second one"
    )
    num_test: PositiveInt = Field(500, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> Frequency:
    """Make the task."""
    return Frequency(options)


class Frequency(MadeTask, Classification):
    """(B, S, 1 or 2): samples, with their times -> 1 if the period is wanted, 0 if not."""

    chance = 0.5
    output_size = 2

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test
        self.input_size = 1 if options.time == "stamp" else 2

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        targets = torch.randint(2, (count,), generator=generator)
        wanted = WANTED_MS[0] + (WANTED_MS[1] - WANTED_MS[0]) * torch.rand(count, generator=generator)
        periods = torch.where(targets == 1, wanted, other_periods(count, generator))
        durations = SHORTEST_MS + (LONGEST_MS - SHORTEST_MS) * torch.rand(count, generator=generator)
        starts = (LONGEST_MS - durations) * torch.rand(count, generator=generator)
        times, lengths = self._times(starts, durations, generator)
        phases = torch.rand(count, generator=generator)
        values = torch.sin(2 * math.pi * (times / periods[:, None] + phases[:, None]))[..., None]
        if self.options.time == "feature":
            return Examples(torch.cat((values, times[..., None] / TIME_SCALE_MS - 1), 2), lengths, targets)
        return Examples(values, lengths, targets, times)

    def _times(self, starts: Tensor, durations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """When each sequence is sampled, ascending, (B, S), and how often, (B,)."""
        if self.options.sampling == "asynchronous":
            longest = int(LONGEST_MS)
            lengths = torch.randint(int(SHORTEST_MS), longest + 1, starts.shape, generator=generator)
            places = torch.rand(len(starts), longest, generator=generator)
            real = torch.arange(longest) < lengths[:, None]
            ascending = torch.where(real, places, 1.0).sort(1).values  # padding after the real ones
            return starts[:, None] + durations[:, None] * ascending, lengths
        step = 1.0 if self.options.sampling == "standard" else 0.1
        lengths = (durations / step).long()
        return starts[:, None] + step * torch.arange(int(lengths.max())), lengths


def other_periods(count: int, generator: torch.Generator) -> Tensor:
    """(count,) periods, log-uniform in OTHERS_MS without WANTED_MS."""
    low, high = (math.log(bound) for bound in OTHERS_MS)
    gap_start, gap_end = (math.log(bound) for bound in WANTED_MS)
    place = low + (high - low - (gap_end - gap_start)) * torch.rand(count, generator=generator)
    return torch.where(place < gap_start, place, place + gap_end - gap_start).exp()
