"""Sequence reversal by an encoder-decoder (Cho et al. 2014, EMNLP and SSST-8): accuracy falls with length.

The encoder's last state becomes one vector, c = tanh(V h); the decoder sees it beside each symbol that it has said.
What has to pass through c grows with the length, as in "On the properties of neural machine translation".
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from asr import stacks
from asr.config.fields import PositiveInt, Section
from asr.errors import ConfigError
from asr.nn.masking import valid_mask
from asr.sequence.report import Report
from asr.sequence.settings import READOUT, SCHEDULE, Case, Data
from asr.sequence.task import Outcome, Task
from asr.sequence.trainer import Curve, make_optimizer, update

SHORT, LONG = 8, 17  # lengths up to, and from, which are compared

UNUSED_SETTINGS = (  # an encoder-decoder of its own, judged by its last look
    *READOUT,
    *SCHEDULE,
    "optim.vanishing_regularizer",
    "stop_at_target",
    "device",
    "graph",
)


class Options(Section):
    """Options of sequence reversal."""

    num_symbols: PositiveInt = 10
    shortest: int = Field(3, ge=1, le=SHORT)
    longest: PositiveInt = Field(20, ge=LONG)
    num_test: PositiveInt = Field(200, description="sequences of each length")


def build(options: Options, data: Data) -> Reversal:
    """Make the task."""
    return Reversal(options)


class Reversal(Task):
    """(B, T) symbols -> the same from the last to the first; right if all are."""

    figure = "exact matches, short less long"
    higher_is_better = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.by_length: dict[int, float] = {}

    def run(self, case: Case, report: Report) -> Outcome:
        torch.manual_seed(case.seed)
        generator = torch.Generator().manual_seed(case.seed)
        model = EncoderDecoder(case, self.options.num_symbols)
        optimizer = make_optimizer(model.parameters(), case.optim)
        lengths = range(self.options.shortest, self.options.longest + 1)
        curve, step = Curve(report, case.steps, case.evaluate_every, case.seconds), 0
        for step in range(1, case.steps + 1):
            sizes = torch.randint(lengths.start, lengths.stop, (case.batch_size,), generator=generator)
            symbols = torch.randint(self.options.num_symbols, (case.batch_size, int(sizes.max())), generator=generator)
            loss = model.loss(symbols, sizes)
            update(model, optimizer, loss, case.optim)
            if curve.due(step, loss):
                self.by_length = {length: self._accuracy(model, length) for length in lengths}
                curve.add(self._fall())
            if curve.cut_short:
                break
        shown = [length for length in (5, 8, 10, 15, 20) if length in self.by_length]
        figures = {f"length {length}": self.by_length[length] for length in shown}
        num_parameters = sum(p.numel() for p in model.parameters())
        return Outcome(self._fall(), num_parameters, step, curve.points, figures, curve.cut_short)

    def draw(self, folder: Path) -> list[Path]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(list(self.by_length), list(self.by_length.values()), marker="o")
        axes.set(xlabel="length", ylabel="exact matches", ylim=(-0.03, 1.03), title="reversal through one vector")
        figure.savefig(folder / "by-length.png", dpi=90)
        return [folder / "by-length.png"]

    def _accuracy(self, model: EncoderDecoder, length: int) -> float:
        generator = torch.Generator().manual_seed(-length)
        symbols = torch.randint(self.options.num_symbols, (self.options.num_test, length), generator=generator)
        return float((model.answer(symbols) == symbols.flip(1)).all(1).double().mean())

    def _fall(self) -> float:
        short = [value for length, value in self.by_length.items() if length <= SHORT]
        long = [value for length, value in self.by_length.items() if length >= LONG]
        return sum(short) / len(short) - sum(long) / len(long)


class EncoderDecoder(nn.Module):
    """Two stacks of the same kind with one vector between them.

    Args:
        case: its stack has to stream, as the decoder goes symbol by symbol.
        num_symbols: V; symbol V begins an answer.
    """

    def __init__(self, case: Case, num_symbols: int) -> None:
        super().__init__()
        if case.stack is None:
            raise ConfigError("stack: missing; this task needs one, such as stack=gru")
        size = case.stack.hidden_size
        self.num_symbols = num_symbols
        self.embedding = nn.Embedding(num_symbols + 1, size)
        self.encoder = stacks.build(case.stack, size)
        self.summary = nn.Linear(self.encoder.output_size, size)
        self.decoder = stacks.build(case.stack, 2 * size)
        if self.decoder.lookahead_frames != 0:
            raise ConfigError(
                f"stack.name={case.stack.name}: looks ahead; a decoder cannot, expected a forward-only stack"
            )
        self.linear = nn.Linear(self.decoder.output_size, num_symbols)

    def loss(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """Cross-entropy a symbol, each given the right ones before it; symbols (B, T), lengths (B,)."""
        places = (lengths[:, None] - 1 - torch.arange(symbols.shape[1])).clamp(min=0)
        reversed_ = symbols.gather(1, places)
        said = F.pad(reversed_[:, :-1], (1, 0), value=self.num_symbols)
        context = self._context(symbols, lengths)[:, None].expand(-1, symbols.shape[1], -1)
        hidden, _ = self.decoder(torch.cat((self.embedding(said), context), 2), lengths)
        real = valid_mask(lengths, symbols.shape[1])
        return F.cross_entropy(self.linear(hidden)[real], reversed_[real])

    @torch.no_grad()
    def answer(self, symbols: Tensor) -> Tensor:
        """(B, T) the most probable symbol after those that were said, T times."""
        self.eval()
        batch, length = symbols.shape
        context = self._context(symbols, torch.full((batch,), length))[:, None]
        said = torch.full((batch, 1), self.num_symbols)
        state = self.decoder.initial_state(batch, context)
        answer = []
        for _ in range(length):
            hidden, state = self.decoder.step(torch.cat((self.embedding(said), context), 2), state)
            said = self.linear(hidden).argmax(-1)
            answer.append(said)
        self.train()
        return torch.cat(answer, 1)

    def _context(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.encoder(self.embedding(symbols), lengths)
        return torch.tanh(self.summary(hidden[torch.arange(len(hidden)), lengths - 1]))
