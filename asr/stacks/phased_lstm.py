"""Phased LSTM (Neil, Pfeiffer and Liu, NIPS 2016, arXiv 1610.09513): an LSTM whose units open at times of their own.

Each unit has a period tau, a shift s and an open share r, all learned. At time stamp t its phase and its time gate are

    phi = ((t - s) mod tau) / tau        k = 2 phi / r        where phi < r / 2       opening
                                             2 - 2 phi / r    where phi < r           closing
                                             alpha phi        else                    closed

with a leak alpha of 1e-3 in training, which lets gradients through, and 0 in evaluation. Where k is 0 a unit keeps its
state:

    i, f = sigmoid(p_i + U_i h + w_i * c), ...    g = tanh(p_g + U_g h)    C = f * c + i * g
    o = sigmoid(p_o + U_o h + w_o * C)                                     H = o * tanh(C)
    c' = k * C + (1 - k) * c                                               h' = k * H + (1 - k) * h

p = W x + b is given. Peepholes are those of the authors' code: i and f see the old cell, o the new one before it is
blended. As there, tau and r enter by their absolute values; the code writes t + s for t - s.

Without time stamps a frame's is its index since the stream began, so that an output depends on how many frames came
before it. Phases are computed in float64, whatever the type of the weights: in float32 those of a period of 3 frames
are wrong by up to 1 % of it after an hour at 100 frames a second, a fifth of the time for which a unit is open.

On a CPU time gate and time loop are compiled (`_phased_lstm_on_cpu`). torch's operations, below, are for GPUs, and for
whoever watches operations, as export does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import NonNegativeFloat, PositiveFloat, Probability, StackOptions
from asr.nn import products
from asr.nn.cells import full_on_cpu
from asr.nn.masking import zero_padding
from asr.stacks import _phased_lstm_on_cpu
from asr.stacks.base import Stack

LEAK = 1e-3  # alpha in training (the paper and its code)
INITIAL_DEVIATION = 0.1  # of every matrix and peephole (Lasagne's Gate, which the authors' code uses)
FEW = 0.25  # share of open units up to which it is faster to compute those alone, of one stream and of many
INITIAL_INPUT_BIAS = -0.1  # of the input gate; all other biases are 0 (the authors' frequency task)


class Config(StackOptions):
    """Options of `stack=phased_lstm`."""

    peepholes: bool = Field(True, description="gates see the cell state")
    period_init_low: float = Field(1.0, description="periods start as exp(U(low, high)), in units of the time stamps")
    period_init_high: float = Field(6.0, description="see period_init_low; without time stamps the unit is a frame")
    shift_init_high: NonNegativeFloat = Field(
        0.0, description="shifts start as U(0, this); 0: as U(0, the unit's period)"
    )
    ratio_on_init: PositiveFloat = Field(0.05, le=1.0, description="share of its period for which a unit starts open")
    dropout: Probability = Field(0.0, description="on each layer's output but the last one's")


def build(config: Config, input_size: int) -> PhasedLstm:
    """Make the stack that `config` describes."""
    return PhasedLstm(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        peepholes=config.peepholes,
        period_init_low=config.period_init_low,
        period_init_high=config.period_init_high,
        shift_init_high=config.shift_init_high,
        ratio_on_init=config.ratio_on_init,
        dropout=config.dropout,
    )


class PhasedLstmState(NamedTuple):
    """What a stream carries.

    hidden: (B, L, H), each layer's last hidden state.
    cell: (B, L, H), each layer's last cell state.
    next_frame: (B,) int64, frames taken so far, which is the next one's time stamp if it is given none.
    """

    hidden: Tensor
    cell: Tensor
    next_frame: Tensor


class PhasedLstm(Stack):
    """L layers of phased LSTM; see `Config` for the options.

    In evaluation an output frame is all 0 until the first unit has opened.

    Raises:
        ValueError: the bounds of the initial periods are in the wrong order.
    """

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        peepholes: bool = True,
        period_init_low: float = 1.0,
        period_init_high: float = 6.0,
        shift_init_high: float = 0.0,
        ratio_on_init: float = 0.05,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if period_init_low > period_init_high:
            raise ValueError(
                f"stack.period_init_low: got {period_init_low}, expected at most"
                f" stack.period_init_high={period_init_high}"
            )
        self.hidden_size = self.output_size = hidden_size
        self.lookahead_frames = 0
        self.layers = nn.ModuleList(
            PhasedLstmLayer(
                input_size if index == 0 else hidden_size,
                hidden_size,
                peepholes=peepholes,
                period_init_low=period_init_low,
                period_init_high=period_init_high,
                shift_init_high=shift_init_high,
                ratio_on_init=ratio_on_init,
            )
            for index in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, inputs: Tensor, lengths: Tensor, times: Float[Tensor, "B S"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run whole utterances.

        Args:
            inputs: (B, S, D).
            lengths: (B,).
            times: time stamp of each frame, in the unit of the periods, best in float64; in padding anything finite.
                None: 0, 1, 2, ...

        Raises:
            ValueError: `times` does not fit the inputs.
        """
        batch, num_frames, _ = inputs.shape
        if times is None:
            times = torch.arange(num_frames, device=inputs.device, dtype=torch.float64)[None]  # the same for all items
        else:
            times = zero_padding(_checked(times, inputs), lengths)
        state = self.initial_state(batch, inputs)
        hidden = zero_padding(inputs, lengths)
        for index, layer in enumerate(self.layers):
            below = self.dropout(hidden) if index else hidden
            hidden, _ = layer(below, times, state.hidden[:, index], state.cell[:, index])
        return zero_padding(hidden, lengths), lengths

    def initial_state(self, batch_size: int, like: Tensor) -> PhasedLstmState:
        """Zeros."""
        zeros = like.new_zeros(batch_size, len(self.layers), self.hidden_size)
        return PhasedLstmState(zeros, zeros, torch.zeros(batch_size, dtype=torch.int64, device=like.device))

    def step(
        self, chunk: Tensor, state: PhasedLstmState, times: Float[Tensor, "B n"] | None = None
    ) -> tuple[Tensor, PhasedLstmState]:
        """Take n >= 0 frames with their time stamps; None: the frames' indices."""
        num_frames = chunk.shape[1]
        if not num_frames:
            return chunk.new_zeros(chunk.shape[0], 0, self.output_size), state
        if times is None:
            times = (state.next_frame[:, None] + torch.arange(num_frames, device=chunk.device)).double()
        else:
            times = _checked(times, chunk)
        below, hiddens, cells = chunk, [], []
        for index, layer in enumerate(self.layers):
            below, cell = layer(below, times, state.hidden[:, index], state.cell[:, index])
            hiddens.append(below[:, -1])
            cells.append(cell)
        return below, PhasedLstmState(torch.stack(hiddens, 1), torch.stack(cells, 1), state.next_frame + num_frames)

    def flush(self, state: PhasedLstmState) -> Tensor:
        return state.hidden.new_zeros(state.hidden.shape[0], 0, self.output_size)

    def figures(self) -> dict[str, float]:
        """The share of units that are open at a mean time."""
        shares = [layer.open_share() for layer in self.layers if isinstance(layer, PhasedLstmLayer)]
        return {"open_units_share": sum(shares) / len(shares)}


def _checked(times: Tensor, inputs: Tensor) -> Tensor:
    if times.shape != inputs.shape[:2]:
        raise ValueError(
            f"times: got shape {tuple(times.shape)}, expected that of the frames, {tuple(inputs.shape[:2])}"
        )
    return times.double()


class PhasedLstmLayer(nn.Module):
    """One layer. Gates stand in the order g, i, f, o.

    Attributes:
        recurrent: U, (4 H, H).
        peepholes: w of i, f and o, (3, H), or None.
        period: tau, (H,), in units of the time stamps; its absolute value counts.
        shift: s, (H,), likewise; starts as U(0, shift_init_high), or as U(0, tau).
        ratio_on: r, (H,); its absolute value counts.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        peepholes: bool,
        period_init_low: float,
        period_init_high: float,
        shift_init_high: float,
        ratio_on_init: float,
    ) -> None:
        super().__init__()
        self.projection = products.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.peepholes = nn.Parameter(torch.empty(3, hidden_size)) if peepholes else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INITIAL_DEVIATION)
        with torch.no_grad():
            self.projection.bias.zero_()
            self.projection.bias[hidden_size : 2 * hidden_size] = INITIAL_INPUT_BIAS
        self.period = nn.Parameter(torch.empty(hidden_size).uniform_(period_init_low, period_init_high).exp_())
        self.shift = nn.Parameter(torch.rand(hidden_size) * (shift_init_high or self.period.detach()))
        self.ratio_on = nn.Parameter(torch.full((hidden_size,), ratio_on_init))
        self.packed: Tensor | None = None  # U, laid out for good
        self.few_open = False  # and so the others are not computed

    def fold_norm(self) -> None:
        """Choose how to compute with weights that do not change any more, and lay them out (`asr.nn.folding`)."""
        with torch.no_grad():
            self.few_open = products.ours(self.recurrent) and self.open_share() <= FEW
        self.packed = None if self.few_open else products.pack(self.recurrent)

    def open_share(self) -> float:
        """Of units at a mean time."""
        return float(self.ratio_on.detach().abs().clamp(max=1).mean())

    def time_gate(self, times: Float[Tensor, "S R"]) -> Float[Tensor, "S R H"]:
        """How far open each unit is at float64 time stamps: k in [0, 1]."""
        leak = LEAK if self.training else 0.0
        period, ratio_on = self.period.abs(), self.ratio_on.abs()
        if full_on_cpu.fits(period):
            return _phased_lstm_on_cpu.time_gate(times, period, self.shift, ratio_on, leak)
        gate = _TimeGate.apply(times, period, self.shift, ratio_on, leak)
        assert isinstance(gate, Tensor)
        return gate

    def forward(
        self,
        inputs: Float[Tensor, "B S D"],
        times: Float[Tensor, "R S"],
        hidden: Float[Tensor, "B H"],
        cell: Float[Tensor, "B H"],
    ) -> tuple[Float[Tensor, "B S H"], Float[Tensor, "B H"]]:
        """Run S >= 1 frames from a hidden and a cell state; gives hidden states and the last cell state.

        Args:
            inputs: frames.
            times: float64 time stamps of each item, or (1, S), the same for all.
            hidden: before the first frame.
            cell: likewise.
        """
        hidden, cell = hidden.to(self.recurrent.dtype), cell.to(self.recurrent.dtype)
        gate = self.time_gate(times.T)
        frames = inputs.transpose(0, 1)  # time first, as the loops want it
        weight, bias, others = self.projection.weight, self.projection.bias, (self.recurrent, self.peepholes)
        if self.few_open and products.ours(frames, training=torch.is_grad_enabled()) and frames.dtype == weight.dtype:
            outputs, last_cell = _phased_lstm_on_cpu.recur_open_units(frames, gate, weight, bias, *others, hidden, cell)
            return outputs.transpose(0, 1), last_cell
        projected = self.projection(frames)
        if full_on_cpu.fits(self.recurrent):
            outputs, last_cell = _phased_lstm_on_cpu.recur(projected, gate, *others, hidden, cell, self.packed)
        else:
            result = _PhasedLstmLoop.apply(projected, gate, *others, hidden, cell)
            assert isinstance(result, tuple)
            outputs, last_cell = result
        return outputs.transpose(0, 1), last_cell


class _TimeGate(torch.autograd.Function):
    """(times (S, R) float64, tau, s, r (H,) each, leak) -> k (S, R, H) in the type of tau.

    k = slope * phi + offset on each of its three pieces, which makes every gradient a multiple of d(k) * slope.
    """

    @staticmethod
    def forward(
        ctx,
        times: Float[Tensor, "S R"],
        period: Float[Tensor, "H"],
        shift: Float[Tensor, "H"],
        ratio_on: Float[Tensor, "H"],
        leak: float,
    ) -> Float[Tensor, "S R H"]:
        cycles = (times[..., None] - shift.double()).div_(period.double())  # since the unit first opened
        phase = cycles.floor()
        phase = torch.sub(cycles, phase, out=phase).to(period.dtype)
        is_on = phase < ratio_on
        steep = 2 / ratio_on
        slope = torch.where(is_on, torch.where(phase < ratio_on / 2, steep, -steep), leak)
        gate = torch.addcmul((slope < 0).to(phase.dtype).mul_(2), slope, phase)
        ctx.save_for_backward(cycles.to(period.dtype), phase, is_on, slope, period, ratio_on)
        return gate

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        cycles, phase, is_on, slope, period, ratio_on = ctx.saved_tensors
        d_phase = gradients[0] * slope
        d_period = (d_phase * cycles).sum((0, 1)).div_(period).neg_()
        d_shift = d_phase.sum((0, 1)).div_(period).neg_()
        d_ratio_on = d_phase.mul_(phase).mul_(is_on).sum((0, 1)).div_(ratio_on).neg_()
        return None, d_period, d_shift, d_ratio_on, None


class _PhasedLstmLoop(torch.autograd.Function):
    """The loop over time: (projected, gate, recurrent, peepholes, hidden, cell) -> outputs (S, B, H), last cell (B, H).

    projected (S, B, 4H) is W x + b in any floating type; gate (S, B or 1, H) is k; the states are in the type of
    `recurrent` (4H, H). Names: new_* are C, tanh(C) and H of the equations, before the blend.
    """

    @staticmethod
    def forward(
        ctx,
        projected: Float[Tensor, "S B G"],
        gate: Float[Tensor, "S R H"],
        recurrent: Float[Tensor, "G H"],
        peepholes: Float[Tensor, "3 H"] | None,
        hidden: Float[Tensor, "B H"],
        cell: Float[Tensor, "B H"],
    ) -> tuple[Float[Tensor, "S B H"], Float[Tensor, "B H"]]:
        num_frames, batch, size = *projected.shape[:2], hidden.shape[-1]
        gates = recurrent.new_empty(projected.shape).copy_(projected)
        new_cells, squashed, new_hiddens = (gates.new_empty(num_frames, batch, size) for _ in range(3))
        hiddens, cells = (gates.new_empty(num_frames + 1, batch, size) for _ in range(2))  # with the initial ones
        hiddens[0], cells[0] = hidden, cell
        transposed = recurrent.T.contiguous()
        views = (
            gates,
            gates[..., size : 3 * size],
            gates[..., size : 3 * size].unflatten(-1, (2, size)),
            *gates.split(size, -1),
            gate,
            new_cells,
            squashed,
            new_hiddens,
            hiddens[:-1],
            hiddens[1:],
            cells[:-1],
            cells[1:],
        )
        for frame in zip(*(view.unbind(0) for view in views), strict=True):
            (
                all_four, take_keep, by_gate, candidate, take, keep, give, opening,
                new_cell, new_squashed, new_hidden, hidden, next_hidden, cell, next_cell,
            ) = frame  # fmt: skip
            all_four.addmm_(hidden, transposed)
            if peepholes is not None:
                by_gate.addcmul_(peepholes[:2], cell[:, None])
            candidate.tanh_()
            take_keep.sigmoid_()
            torch.mul(take, candidate, out=new_cell).addcmul_(keep, cell)
            if peepholes is not None:
                give.addcmul_(peepholes[2], new_cell)
            give.sigmoid_()
            torch.tanh(new_cell, out=new_squashed)
            torch.mul(give, new_squashed, out=new_hidden)
            torch.lerp(cell, new_cell, opening, out=next_cell)
            torch.lerp(hidden, new_hidden, opening, out=next_hidden)
        ctx.save_for_backward(gates, gate, new_cells, squashed, new_hiddens, hiddens, cells, recurrent, peepholes)
        ctx.projected_type = projected.dtype
        return hiddens[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gates, gate, new_cells, squashed, new_hiddens, hiddens, cells, recurrent, peepholes = ctx.saved_tensors
        num_frames, batch, size = new_cells.shape
        candidate, take, keep, give = gates.split(size, -1)

        # d(pre-activation) = d(C) * factor, for o d(h') * factor, for all frames at once; d(C) and d(h') need the loop.
        factors = torch.empty_like(gates)
        of_candidate, of_take, of_keep, of_give = factors.split(size, -1)
        sigmoids = gates[..., size:]
        torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=factors[..., size:])  # sigmoid'
        of_take.mul_(candidate)
        of_keep.mul_(cells[:-1])
        of_give.mul_(squashed).mul_(gate)
        torch.mul(candidate, candidate, out=of_candidate).neg_().add_(1).mul_(take)
        through_output = squashed.square().neg_().add_(1).mul_(give).mul_(gate)  # d(C) / d(h')
        if peepholes is not None:
            through_output.addcmul_(of_give, peepholes[2])
        closing = 1 - gate

        d_hiddens, d_cells = (
            gates.new_zeros(num_frames + 1, batch, size) for _ in range(2)
        )  # d(h), d(c) of each frame
        d_hiddens[1:] = gradients[0]
        d_cells[-1] = gradients[1]
        d_gates = torch.empty_like(gates)
        d_new_cell = torch.empty_like(cells[0])
        by_cell = (3, size)
        views = (
            d_gates,
            d_gates[..., : 3 * size].unflatten(-1, by_cell),
            *d_gates[..., size:].split(size, -1),
            factors[..., : 3 * size].unflatten(-1, by_cell),
            of_give,
            through_output,
            keep,
            gate,
            closing,
            d_hiddens[:-1],
            d_hiddens[1:],
            d_cells[:-1],
            d_cells[1:],
        )
        for frame in zip(*(reversed(view.unbind(0)) for view in views), strict=True):
            (
                d_all_four, d_by_gate, d_take, d_keep, d_give, factor, factor_give, through, keep_now,
                opening, shut, d_hidden, d_next_hidden, d_cell, d_next_cell,
            ) = frame  # fmt: skip
            torch.mul(d_next_cell, opening, out=d_new_cell).addcmul_(d_next_hidden, through)
            torch.mul(d_new_cell[:, None], factor, out=d_by_gate)
            torch.mul(d_next_hidden, factor_give, out=d_give)
            torch.mul(d_next_cell, shut, out=d_cell).addcmul_(d_new_cell, keep_now)
            if peepholes is not None:
                d_cell.addcmul_(d_take, peepholes[0]).addcmul_(d_keep, peepholes[1])
            d_hidden.addcmul_(d_next_hidden, shut).addmm_(d_all_four, recurrent)

        d_gate = (new_hiddens - hiddens[:-1]).mul_(d_hiddens[1:]).addcmul_(new_cells - cells[:-1], d_cells[1:])
        kind = ctx.projected_type
        d_projected = d_gates.to(kind)
        d_recurrent = (d_projected.flatten(0, 1).T @ hiddens[:-1].flatten(0, 1).to(kind)).to(recurrent.dtype)
        d_peepholes = None
        if peepholes is not None:
            _, d_take, d_keep, d_give = d_gates.split(size, -1)
            torch.mul(d_take, cells[:-1], out=of_take)  # in the memory of the factors, which are done with
            torch.mul(d_keep, cells[:-1], out=of_keep)
            torch.mul(d_give, new_cells, out=of_give)
            d_peepholes = factors[..., size:].sum((0, 1)).view(3, size)
        return d_projected, d_gate.sum_to_size(gate.shape), d_recurrent, d_peepholes, d_hiddens[0], d_cells[0]
