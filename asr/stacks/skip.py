"""LSTM-Jump, an LSTM that learns which frames to skip (Yu, Lee and Le, ACL 2017, arXiv 1704.06877).

It reads R frames, then draws from a softmax over 0..K of its top hidden state how far to jump, and so on. The jump
counts from the position after the R frames: 1 is the next frame, k leaves k - 1 frames out. It is used in two ways:

* `Skip.read`, for one answer to a whole sequence, as in the paper: a jump of 0 stops, and after N jumps R frames are
  read and no more. The policy learns by REINFORCE: `reinforce_loss`.
* as a stack, a frame out for a frame in: a skipped frame repeats the output of the last frame read. As every frame
  needs an output, nothing stops: a jump of 0 counts as 1, and after N jumps it reads every frame. `forward` and `step`
  take the most probable jump (of equals, the shortest), in training as in evaluation, so that training sees the frames
  that evaluation will. CTC gives the policy no gradient: a fresh one, whose jumps are equally probable, reads every
  frame, and under CTC alone it goes on so, a plain LSTM. To train it, `skim` draws the jumps of a pass over all frames
  and gives what `reinforce_loss` needs besides a reward.

A decision between jumps whose probabilities are within rounding of each other can fall differently in another
precision. On a GPU, or with drawn jumps, it can in another batch size or chunking as well. On a CPU the most probable
jumps are found by a compiled loop (`asr.stacks._numba_skip`), in which an item gives the same bits whatever stands
beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import NonNegativeInt, PositiveInt, Probability, StackOptions
from asr.nn import products
from asr.nn.cells import LstmCell, full_on_cpu
from asr.nn.masking import zero_padding
from asr.nn.recurrent_layer import RecurrentLayer
from asr.stacks.base import Stack

Choose = Callable[[Tensor, Tensor], Tensor]  # logits (B, K + 1), whether the jump matters (B,) -> jumps (B,)


class Config(StackOptions):
    """Options of `stack=skip`."""

    tokens_between_jumps: PositiveInt = Field(1, description="R: frames read before each jump")
    max_jump: PositiveInt = Field(5, description="K: the furthest jump; 1 is the next frame")
    max_jumps: NonNegativeInt = Field(0, description="N: so many jumps, then the last R frames are read; 0: no limit")
    dropout: Probability = Field(0.0, description="on the outputs; a skipped frame repeats what was left of one")


def build(config: Config, input_size: int) -> Skip:
    """Make the stack that `config` describes."""
    return Skip(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        tokens_between_jumps=config.tokens_between_jumps,
        max_jump=config.max_jump,
        max_jumps=config.max_jumps,
        dropout=config.dropout,
    )


class SkipState(NamedTuple):
    """What a stream carries.

    hidden: (B, L, D), h of each layer; the top one's is what skipped frames repeat.
    cell: (B, L, D), c of each layer.
    skipped: (B,) int64, frames still to be skipped.
    unread: (B,) int64, frames to be read before the next jump, 1..R.
    num_jumps: (B,) int64, jumps so far.
    """

    hidden: Tensor
    cell: Tensor
    skipped: Tensor
    unread: Tensor
    num_jumps: Tensor


class SkipTrace(NamedTuple):
    """How sequences were read, with M decisions at most.

    hidden: (B, D), the last hidden state of the top layer, after dropout; 0 for an empty sequence.
    log_probs: (B, M), log p of each jump taken; 0 where there was no decision.
    baselines: (B, M), the reward expected at each decision; its gradient does not reach the LSTM.
    decided: (B, M), whether there was a decision. Where the sequence or the jumps had ended there was none.
    jumps: (B, M) int64, the jumps taken, 0 to stop.
    frames_read: (B,) int64.
    """

    hidden: Tensor
    log_probs: Tensor
    baselines: Tensor
    decided: Tensor
    jumps: Tensor
    frames_read: Tensor


class Skip(Stack):
    """LSTM layers that move together, with one policy on the top one; see `Config` for the arguments.

    The policy starts with zeros: every jump is as probable as any other. Dropout is on the outputs alone, as a jump's
    log-probability has to be that which it was drawn with.

    Attributes:
        packed: the weights as the CPU's loop reads them, once they do not change any more.
    """

    lookahead_frames = 0
    packed: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        tokens_between_jumps: int = 1,
        max_jump: int = 5,
        max_jumps: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden_size = self.output_size = hidden_size
        self.num_layers = num_layers
        self.tokens_between_jumps, self.max_jumps = tokens_between_jumps, max_jumps
        self.layers = nn.ModuleList(
            RecurrentLayer(
                hidden_size if layer else input_size,
                lambda num_chains: LstmCell(hidden_size=hidden_size, num_chains=num_chains),
                bidirectional=False,
                merge="sum",
                normalized=False,
            )
            for layer in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.policy = nn.Linear(hidden_size, max_jump + 1)
        nn.init.zeros_(self.policy.weight)
        nn.init.zeros_(self.policy.bias)
        self.baseline = nn.Linear(hidden_size, 1)

    def read(
        self,
        inputs: Float[Tensor, "B S D"] | Int[Tensor, "B S"],
        lengths: Int[Tensor, "B"],
        sample: bool,
        jumps: Int[Tensor, "B M"] | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> SkipTrace:
        """Read sequences from their start until each stops: a jump of 0, the R frames after N jumps, or its end.

        Args:
            inputs: padding frames may hold anything.
            lengths: (B,).
            sample: draw the jumps, from torch's generator; else take the most probable ones.
            jumps: take these instead, M at least as many as there are decisions.
            embed: symbols (...) -> frames (..., D), where `inputs` are symbols; called for those that are read.
        """
        chooser = _Chooser(sample, jumps)
        state = self.initial_state(len(inputs), inputs)
        walk = self._walk(inputs, lengths, state, chooser, stops=True, embed=embed)
        return self._trace(self._reads(inputs, walk, embed), walk, chooser)[1]

    def skim(
        self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"], sample: bool
    ) -> tuple[Float[Tensor, "B S E"], SkipTrace]:
        """Do as `forward`, but draw the jumps if `sample`; with the trace that `reinforce_loss` needs."""
        chooser = _Chooser(sample)
        walk = self._walk(inputs, lengths, self.initial_state(len(inputs), inputs), chooser, stops=False)
        reads, trace = self._trace(self._reads(inputs, walk), walk, chooser)
        return zero_padding(walk.held(reads), lengths), trace

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        walk = self._walk(inputs, lengths, self.initial_state(len(inputs), inputs), _most_probable, stops=False)
        outputs = zero_padding(walk.held(self.dropout(self._reads(inputs, walk))), lengths)
        if self.training:  # ranks that share a gradient want one of every parameter: the policy's is 0
            outputs = outputs + 0.0 * torch.stack([p.sum() for p in self._deciding]).sum()
        return outputs, lengths

    def initial_state(self, batch_size: int, like: Tensor) -> SkipState:
        zeros = like.new_zeros(batch_size, self.num_layers, self.hidden_size, dtype=self.policy.weight.dtype)
        none = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        return SkipState(zeros, zeros, none, none + self.tokens_between_jumps, none)

    def step(self, chunk: Tensor, state: SkipState) -> tuple[Tensor, SkipState]:
        lengths = torch.full((len(chunk),), chunk.shape[1], device=chunk.device)
        walk = self._walk(chunk, lengths, state, _most_probable, stops=False)
        return walk.held(self._reads(chunk, walk)), walk.after

    def flush(self, state: SkipState) -> Tensor:
        return state.hidden.new_zeros(len(state.hidden), 0, self.output_size)

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Lay out the weights for good (`asr.nn.folding`)."""
        policy = self.policy.weight
        self.packed = _loops().pack_weights(self._weights, policy) if full_on_cpu.fits(policy) else None

    @property
    def _layers(self) -> list[RecurrentLayer]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    @property
    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, of its input and the recurrent one."""
        return [(layer.projection.weight, layer.cell.recurrent[0]) for layer in self._layers]  # type: ignore[index, union-attr]

    @property
    def _deciding(self) -> list[nn.Parameter]:
        return [*self.policy.parameters(), *self.baseline.parameters()]

    def _trace(self, reads: Tensor, walk: _Walk, chooser: _Chooser) -> tuple[Tensor, SkipTrace]:
        """Reads with dropout, and the trace."""
        jumps, decided = chooser.taken(len(reads), reads.device)
        # All start together, so that a decision comes with every R-th read.
        hidden = reads[:, self.tokens_between_jumps - 1 :: self.tokens_between_jumps][:, : jumps.shape[1]]
        with torch.autocast(hidden.device.type, enabled=False):
            log_probs = torch.log_softmax(self.policy(hidden), -1).gather(2, jumps[..., None])[..., 0]
            baselines = self.baseline(hidden.detach())[..., 0]
        reads = self.dropout(reads)
        frames_read = walk.active.sum(1)
        trace = SkipTrace(
            hidden=walk.after_read(reads, frames_read[:, None])[:, 0],
            log_probs=log_probs.masked_fill(~decided, 0.0),
            baselines=baselines.masked_fill(~decided, 0.0),
            decided=decided,
            jumps=jumps.masked_fill(~decided, 0),
            frames_read=frames_read,
        )
        return reads, trace

    @torch.no_grad()
    def _walk(
        self,
        inputs: Tensor,
        lengths: Tensor,
        state: SkipState,
        choose: Choose,
        *,
        stops: bool,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> _Walk:
        """Find which frames are read. Every item goes at its own pace, one frame of each in a turn of the loop.

        There is no gradient through a jump. That of what is read is taken afterwards, for all reads at once (`_reads`):
        here every turn's would be of the size of `inputs`. Whether anything is left to read is asked in every turn, for
        which a GPU is waited for: so there are as many turns as reads, and not as frames.
        """
        like = self.policy.weight
        known = inputs.numel() and full_on_cpu.fits(like) and not torch.is_autocast_enabled("cpu")
        if known and choose is _most_probable:
            return self._walk_on_cpu(inputs.to(like.dtype), lengths, state)
        rows, last = torch.arange(len(inputs), device=inputs.device), inputs.shape[1] - 1
        position, unread, num_jumps = state.skipped, state.unread, state.num_jumps
        hidden, cell = list(state.hidden.unbind(1)), list(state.cell.unbind(1))
        recurrent = [weight.T for _, weight in self._weights]
        positions, actives, tops = [], [], []
        while bool((active := position < lengths).any()):
            current = _embedded(inputs[rows, position.clamp(max=last)], embed)
            for index, layer in enumerate(self._layers):
                gates = layer.projection(current).to(cell[index].dtype).addmm_(hidden[index], recurrent[index])
                candidate = torch.tanh(gates.chunk(4, -1)[2])
                take, keep, _, give = gates.sigmoid_().chunk(4, -1)
                moved = (take * candidate).addcmul_(keep, cell[index])
                current = give * torch.tanh(moved)
                cell[index] = torch.where(active[:, None], moved, cell[index])
                hidden[index] = torch.where(active[:, None], current, hidden[index])
            positions.append(position)
            actives.append(active)
            tops.append(hidden[-1])
            position, unread = position + active, unread - active.long()
            due = active & (unread == 0)
            if self.tokens_between_jumps > 1 and not bool(due.any()):
                continue
            may_jump = num_jumps < self.max_jumps if self.max_jumps else torch.ones_like(due)
            deciding = due & may_jump & (position < lengths)
            if self.max_jumps and not bool(deciding.any()):
                jump = torch.zeros_like(position)
            else:
                with torch.autocast(inputs.device.type, enabled=False):
                    jump = choose(self.policy(hidden[-1]), deciding)
            if stops:
                landing = torch.where(may_jump & (jump > 0), position + jump - 1, lengths)
            else:
                landing = position + torch.where(may_jump, jump.clamp(min=1), 1) - 1
            position = torch.where(due, landing, position)
            unread, num_jumps = torch.where(due, self.tokens_between_jumps, unread), num_jumps + due
        after = SkipState(torch.stack(hidden, 1), torch.stack(cell, 1), position - lengths, unread, num_jumps)
        return _Walk(
            inputs.shape[1],
            state,
            _stacked(positions, rows.new_zeros(len(rows), 0)),
            _stacked(actives, rows.new_zeros(len(rows), 0, dtype=torch.bool)),
            _stacked(tops, state.hidden[:, :0, :]),
            after,
        )

    def _walk_on_cpu(self, inputs: Tensor, lengths: Tensor, state: SkipState) -> _Walk:
        """The same by a compiled loop: by the most probable jumps, to the end of every item."""
        found = _loops().walk(
            inputs,
            lengths,
            state,
            self._weights,
            [layer.projection.bias for layer in self._layers],
            (self.policy.weight, self.policy.bias),
            tokens_between_jumps=self.tokens_between_jumps,
            max_jumps=self.max_jumps,
            packed=products.unless_moved(self.packed, inputs),
        )
        number = max(found.reads.tolist(), default=0)
        return _Walk(
            inputs.shape[1],
            state,
            found.positions[:, :number],
            torch.arange(number) < found.reads[:, None],
            found.tops[:, :number],
            SkipState(found.hidden, found.cell, found.position - lengths, found.unread, found.num_jumps),
        )

    def _reads(
        self, inputs: Tensor, walk: _Walk, embed: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "B M D"]:
        """The top hidden state after each read; with their gradient, if one is wanted."""
        if not torch.is_grad_enabled() or not walk.positions.shape[1]:
            return walk.tops
        rows = torch.arange(len(inputs), device=inputs.device)[:, None]
        current = _embedded(inputs[rows, walk.positions.masked_fill(~walk.active, 0)], embed)
        for index, layer in enumerate(self._layers):
            state = torch.cat((walk.before.hidden[:, index], walk.before.cell[:, index]), -1)[:, None]
            current, _ = layer.step(current, state)
        return current


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes have no use for it."""
    from asr.stacks import _numba_skip

    return _numba_skip


def _embedded(frames: Tensor, embed: Callable[[Tensor], Tensor] | None) -> Tensor:
    return frames if embed is None else embed(frames)


class _Walk(NamedTuple):
    """Which frames were read.

    num_frames: S.
    before: the state at the start.
    positions: (B, M), of each read.
    active: (B, M), whether there was one; an item's reads come first.
    tops: (B, M, D), top hidden states after them, without gradient.
    after: the state at the end.
    """

    num_frames: int
    before: SkipState
    positions: Tensor
    active: Tensor
    tops: Tensor
    after: SkipState

    def after_read(self, reads: Tensor, number: Tensor) -> Tensor:
        """The hidden state (B, n, D) after so many reads (B, n)."""
        states = torch.cat((self.before.hidden[:, -1:], reads), 1)
        return states.gather(1, number[..., None].expand(-1, -1, states.shape[2]))

    def held(self, reads: Tensor) -> Tensor:
        """The output of each frame, (B, S, D): the hidden state after the last read until there."""
        read_here = self.positions.new_zeros(len(reads), self.num_frames)
        read_here.scatter_add_(1, self.positions.masked_fill(~self.active, 0), self.active.long())
        return self.after_read(reads, read_here.cumsum(1))


class _Chooser:
    """Draws jumps, or takes the most probable or the given ones, and remembers them.

    Args:
        sample: draw.
        given: (B, M), take these.
    """

    def __init__(self, sample: bool, given: Tensor | None = None) -> None:
        self.sample, self.given = sample, given
        self.jumps: list[Tensor] = []
        self.decided: list[Tensor] = []

    def __call__(self, logits: Tensor, decided: Tensor) -> Tensor:
        """(B, K + 1), (B,) -> (B,)."""
        if self.given is not None:
            number = len(self.jumps)
            if number == self.given.shape[1]:  # nobody decides any more, or there is too little
                if bool(decided.any()):
                    raise ValueError(
                        f"jumps: got {number} for each item, expected one for each decision, which are more"
                    )
                return torch.zeros_like(decided, dtype=torch.int64)
            jump = self.given[:, number]
        elif self.sample:
            jump = _drawn(logits)
        else:
            jump = _most_probable(logits, decided)
        self.jumps.append(jump)
        self.decided.append(decided)
        return jump

    def taken(self, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Jumps and whether they were decisions, (B, M) each."""
        none = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        return _stacked(self.jumps, none), _stacked(self.decided, none.bool())


def _drawn(logits: Tensor) -> Tensor:
    """One jump a row, with the softmax's probabilities: of one random number a row, where multinomial draws K + 1."""
    reached = torch.softmax(logits, -1).cumsum(-1)
    drawn = (1 - torch.rand(len(logits), 1, device=logits.device)) * reached[:, -1:]  # above 0: no jump of p = 0
    return torch.searchsorted(reached, drawn)[:, 0]


def _most_probable(logits: Tensor, decided: Tensor) -> Tensor:
    return logits.argmax(-1)  # of equals the first


def _stacked(columns: Sequence[Tensor], empty: Tensor) -> Tensor:
    """(B, M, ...) of M columns; `empty` if there are none."""
    return torch.stack(list(columns), 1) if columns else empty


def reinforce_loss(trace: SkipTrace, rewards: Float[Tensor, "B"], baseline_weight: float = 1.0) -> Float[Tensor, "B"]:
    """Give each item's loss, whose gradient is on average that of minus the expected reward (Williams 1992).

    loss = -sum over decisions of log p (R - b) + baseline_weight * sum of (R - b)^2; the baseline learns from the
    second term alone, the policy and the LSTM from the first alone.

    Args:
        trace: of `Skip.read` or `Skip.skim`, with sampled jumps.
        rewards: R, +1 for a right answer and -1 for a wrong one in the paper.
        baseline_weight: lambda.
    """
    advantage = (rewards[:, None] - trace.baselines) * trace.decided
    return baseline_weight * advantage.square().sum(1) - (trace.log_probs * advantage.detach()).sum(1)
