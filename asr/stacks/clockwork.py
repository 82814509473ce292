"""Clockwork RNN (Koutnik, Greff, Gomez and Schmidhuber, ICML 2014, arXiv 1402.3511).

The H units are g modules of k = H / g, module i with a period T_i, fastest first. At frame t the modules with
t mod T_i = 0 run, and the others keep their state:

    h_i(t) = tanh(sum over j >= i of W_ij h_j(t - 1) + V_i x(t) + b_i)    if t mod T_i = 0, else h_i(t - 1)

So a module reads itself and the slower ones, and a frame costs as many rows of W and V as there are units that run:
with the default periods 1, 2, 4, ... about 2 k of the g k. W is block upper triangular, and only the blocks of the
triangle are parameters, k^2 g (g + 1) / 2 of them.

The clocks start with the utterance: an output depends on how many frames came before it, not on the inputs alone.

On a CPU the time loop is compiled (`_clockwork_on_cpu`). torch's operations, below, are for GPUs, and for whoever
watches operations, as export does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import PositiveInt, Probability, StackOptions
from asr.nn import products
from asr.nn.cells import full_on_cpu
from asr.nn.masking import zero_padding
from asr.stacks import _clockwork_on_cpu
from asr.stacks._clockwork_on_cpu import Clock
from asr.stacks.base import Stack

INITIAL_DEVIATION = 0.1  # of every parameter (the paper)
MAX_CYCLE = 2**62  # frames; a stream's age, counted modulo the cycle of all clocks, is an int64


class Config(StackOptions):
    """Options of `stack=clockwork`."""

    num_modules: PositiveInt = Field(8, description="groups of units with a clock each; divides hidden_size")
    periods: tuple[PositiveInt, ...] = Field(
        (), description="frames between two updates of each module, ascending; none: 1, 2, 4, 8, ... as in the paper"
    )
    learned_initial: bool = Field(False, description="learn the state before the first frame; else it is 0")
    dropout: Probability = Field(0.0, description="on each layer's output but the last one's")


def build(config: Config, input_size: int) -> Clockwork:
    """Make the stack that `config` describes."""
    return Clockwork(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_modules=config.num_modules,
        periods=config.periods,
        learned_initial=config.learned_initial,
        dropout=config.dropout,
    )


class ClockworkState(NamedTuple):
    """What a stream carries.

    hidden: (B, L, H), each layer's last hidden state.
    age: (B,) int64, frames taken so far, modulo the least common multiple of the periods.
    """

    hidden: Tensor
    age: Tensor


class Clockwork(Stack):
    """L layers with the same clocks; see `Config` for the options.

    Raises:
        ValueError: hidden_size is not a multiple of num_modules, or the periods do not fit it.
    """

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_modules: int = 8,
        periods: Sequence[int] = (),
        learned_initial: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_size % num_modules:
            raise ValueError(
                f"stack.num_modules: got {num_modules} with stack.hidden_size={hidden_size}, expected a divisor of it"
            )
        self.periods = tuple(periods) or tuple(2**i for i in range(num_modules))
        if len(self.periods) != num_modules or any(a > b for a, b in pairwise(self.periods)):
            raise ValueError(
                f"stack.periods: got {list(periods)}, expected as many as stack.num_modules={num_modules}, ascending:"
                " a module reads itself and slower ones"
            )
        self.cycle = math.lcm(*self.periods)
        if self.cycle > MAX_CYCLE:
            raise ValueError(
                f"stack.{'periods' if periods else 'num_modules'}: got clocks that meet every {self.cycle} frames,"
                " expected at most 2^62: take fewer modules or smaller periods"
            )
        self.nested = all(b % a == 0 for a, b in pairwise(self.periods))  # then the modules that run are the first ones
        self.hidden_size = self.output_size = hidden_size
        self.lookahead_frames = 0
        self.layers = nn.ModuleList(
            ClockworkLayer(
                input_size if index == 0 else hidden_size,
                hidden_size,
                num_modules=num_modules,
                learned_initial=learned_initial,
            )
            for index in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = zero_padding(inputs, lengths)
        batch, num_frames, _ = inputs.shape
        state = self.initial_state(batch, inputs)
        clock = self._clock([0] * batch, num_frames, inputs.device)
        for index, layer in enumerate(self.layers):
            hidden = layer(self.dropout(hidden) if index else hidden, state.hidden[:, index], clock)
        return zero_padding(hidden, lengths), lengths

    def initial_state(self, batch_size: int, like: Tensor) -> ClockworkState:
        """Zeros, or the learned states; age 0."""
        hidden = torch.stack([layer.initial_state(batch_size, like) for layer in self._layers], 1)
        return ClockworkState(hidden, torch.zeros(batch_size, dtype=torch.int64, device=like.device))

    def step(self, chunk: Tensor, state: ClockworkState) -> tuple[Tensor, ClockworkState]:
        num_frames = chunk.shape[1]
        if not num_frames:
            return chunk.new_zeros(chunk.shape[0], 0, self.output_size), state
        clock = self._clock(state.age.tolist(), num_frames, chunk.device)
        hidden, finals = chunk, []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, state.hidden[:, index], clock)
            finals.append(hidden[:, -1])
        return hidden, ClockworkState(torch.stack(finals, 1), (state.age + num_frames) % self.cycle)

    def flush(self, state: ClockworkState) -> Tensor:
        return state.hidden.new_zeros(state.hidden.shape[0], 0, self.output_size)

    def figures(self) -> dict[str, float]:
        """The share of units that run in a mean frame."""
        return {"active_units_share": sum(1 / period for period in self.periods) / len(self.periods)}

    @property
    def _layers(self) -> list[ClockworkLayer]:
        return [layer for layer in self.layers if isinstance(layer, ClockworkLayer)]

    def _clock(self, ages: list[int], num_frames: int, device: torch.device) -> Clock:
        """Which modules run in the next frames of streams of these ages."""
        if len(set(ages)) == 1:
            ages = ages[:1]
        time = torch.arange(num_frames)[:, None] + torch.tensor(ages)
        runs = time[..., None] % torch.tensor(self.periods) == 0
        levels = (runs.any(1) * torch.arange(1, len(self.periods) + 1)).amax(-1)
        counts = levels.bincount(minlength=len(self.periods) + 1).tolist()
        order = levels.argsort(stable=True).to(device, non_blocking=True)
        return Clock(runs, levels, order, counts, self.nested and len(ages) == 1)


class ClockworkLayer(nn.Module):
    """One layer. `recurrent[i]` is (k, (g - i) k): what module i reads of itself and the slower modules."""

    def __init__(self, input_size: int, hidden_size: int, *, num_modules: int, learned_initial: bool) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.module_size = hidden_size // num_modules
        self.projection = products.Linear(input_size, hidden_size)
        self.packed: Tensor | None = None  # W, laid out for good
        self.recurrent = nn.ParameterList(
            torch.empty(self.module_size, hidden_size - i * self.module_size) for i in range(num_modules)
        )
        self.initial = nn.Parameter(torch.empty(hidden_size)) if learned_initial else None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=INITIAL_DEVIATION)

    def initial_state(self, batch_size: int, like: Tensor) -> Float[Tensor, "B H"]:
        """The state before the first frame."""
        if self.initial is None:
            return like.new_zeros(batch_size, self.hidden_size)
        return self.initial.to(like.dtype).expand(batch_size, -1)

    def recurrent_matrix(self) -> Float[Tensor, "H H"]:
        """W, with zeros below the block diagonal."""
        return torch.cat([F.pad(block, (self.hidden_size - block.shape[1], 0)) for block in self.recurrent])

    def fold_norm(self) -> None:
        """Lay out W for good (`asr.nn.folding`)."""
        with torch.no_grad():
            self.packed = _clockwork_on_cpu.pack(self.recurrent) if full_on_cpu.fits(self.projection.weight) else None

    def forward(
        self, inputs: Float[Tensor, "B S D"], initial: Float[Tensor, "B H"], clock: Clock
    ) -> Float[Tensor, "B S H"]:
        """Run S >= 1 frames from the state `initial`."""
        frames = inputs.transpose(0, 1)  # time first, as the loops want it
        weight, bias = self.projection.weight, self.projection.bias
        if full_on_cpu.fits(weight):
            packed = self.projection.packed, self.packed
            outputs = _clockwork_on_cpu.run(frames, initial, weight, bias, self.recurrent, clock, packed)
            return outputs.transpose(0, 1)
        recurrent = self.recurrent_matrix()
        initial = initial.to(recurrent.dtype)
        if not clock.is_prefix:
            projected = self.projection(frames).to(recurrent.dtype)
            units = clock.runs.to(inputs.device, non_blocking=True).repeat_interleave(self.module_size, 2)
            return _masked_loop(projected, recurrent, initial, units).transpose(0, 1)
        # Only the rows that run are projected: the frames in which m modules run go through the first m modules' rows.
        parts = frames.index_select(0, clock.order[clock.counts[0] :]).split(clock.counts[1:])
        projected = [
            F.linear(part, weight[:rows], bias[:rows])
            for part, rows in zip(parts, range(self.module_size, self.hidden_size + 1, self.module_size), strict=True)
        ]
        outputs = _PrefixLoop.apply(clock, recurrent, initial, *projected)
        assert isinstance(outputs, Tensor)
        return outputs.transpose(0, 1)


class _PrefixLoop(torch.autograd.Function):
    """(clock, W (H, H), initial (B, H), projected_1 .. projected_g) -> outputs (S, B, H).

    projected_m is (S_m, B, m k) in any floating type: V x + b of the units that run, for the S_m frames in which the
    first m modules do. A frame multiplies as many rows of W, forward and backward, and the weight's gradient is one
    product for each m.
    """

    @staticmethod
    def forward(
        ctx,
        clock: Clock,
        recurrent: Float[Tensor, "H H"],
        initial: Float[Tensor, "B H"],
        *projected: Float[Tensor, "_ B _"],
    ) -> Float[Tensor, "S B H"]:
        states = recurrent.new_empty(len(clock.levels) + 1, *initial.shape)  # with the initial one
        states[0] = initial
        size = recurrent.shape[0] // len(projected)
        transposed = recurrent.T.contiguous()
        columns = [transposed[:, : level * size] for level in range(len(projected) + 1)]
        waiting = [iter(part.to(recurrent.dtype).unbind(0)) for part in projected]
        hidden, *outputs = states.unbind(0)
        levels = clock.levels.tolist()
        for level, output in zip(levels, outputs, strict=True):
            output.copy_(hidden)
            if level:
                active = output[:, : level * size]
                torch.addmm(next(waiting[level - 1]), hidden, columns[level], out=active)
                active.tanh_()
            hidden = output
        ctx.save_for_backward(states, recurrent, *clock.order.split(clock.counts)[1:])
        ctx.levels, ctx.projected_type = levels, projected[0].dtype
        return states[1:]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        states, recurrent, *frames = ctx.saved_tensors
        size = recurrent.shape[0] // len(frames)
        rows = [recurrent[: level * size] for level in range(len(frames) + 1)]
        # For each m: first tanh' of the units that run, then d(pre-activation).
        d_projected = [
            states[1:, :, : level * size].index_select(0, chosen).square_().neg_().add_(1)
            for level, chosen in enumerate(frames, start=1)
        ]
        waiting = [reversed(part.unbind(0)) for part in d_projected]
        carry = torch.zeros_like(states[0])  # d(hidden)
        for level, d_output in zip(reversed(ctx.levels), reversed(gradients[0].unbind(0)), strict=True):
            carry.add_(d_output)
            if level:
                active = carry[:, : level * size]
                d_active = next(waiting[level - 1]).mul_(active)
                active.zero_()
                carry.addmm_(d_active, rows[level])
        kind = ctx.projected_type
        d_projected = [part.to(kind) for part in d_projected]
        d_recurrent = torch.zeros_like(recurrent)
        for part, chosen in zip(d_projected, frames, strict=True):
            previous = states.index_select(0, chosen).flatten(0, 1).to(kind)
            d_recurrent[: part.shape[-1]] += part.flatten(0, 1).T @ previous
        return None, d_recurrent, carry, *d_projected


def _masked_loop(
    projected: Float[Tensor, "S B H"],
    recurrent: Float[Tensor, "H H"],
    initial: Float[Tensor, "B H"],
    units: Bool[Tensor, "S _ H"],
) -> Float[Tensor, "S B H"]:
    """Compute every unit in every frame and keep the states of those that do not run, for clocks without a prefix."""
    hidden, outputs = initial, []
    with torch.autocast(projected.device.type, enabled=False):  # the state stays in the type of the weights
        for frame, runs in zip(projected.unbind(0), units.unbind(0), strict=True):
            hidden = torch.where(runs, torch.addmm(frame, hidden, recurrent.T).tanh(), hidden)
            outputs.append(hidden)
    return torch.stack(outputs)
