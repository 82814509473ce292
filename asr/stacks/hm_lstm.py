"""Hierarchical multiscale LSTM (Chung, Ahn and Bengio, ICLR 2017, arXiv 1609.01704).

Layers l = 1..L. A detector in each but the top one says where its segments end (z = 1), and so when the layer above
moves:

    pre = U h[l, t-1] + z[l, t-1] U' h[l+1, t-1] + z[l-1, t] W h[l-1, t] + b        z[0, t] = 1, h[0, t] = x[t]
    i, f, o = sigmoid, g = tanh, p = hardsigmoid of pre's parts        hardsigmoid(x) = max(0, min(1, (a x + 1) / 2))
    z[l, t] = 1 if p > 1/2 else 0
    FLUSH   z[l, t-1] = 1:                    c = i g          h = o tanh(c)
    UPDATE  z[l, t-1] = 0 and z[l-1, t] = 1:  c = f c + i g    h = o tanh(c)
    COPY    both 0:                           c and h stay as they are, bit for bit

It is z[l, t-1], not z[l, t], that gates the top-down term and picks FLUSH. The gradient of z is that of p
(straight-through), whose slope a grows with the epochs: `HmLstm.set_epoch`.

The output is that of section 2.4: y = ReLU(sum over l of sigmoid(w_l [h_1; ...; h_L]) V_l h_l), of hidden_size units.

A boundary whose pre-activation is within rounding of 0 can fall differently in another precision, and what follows it
differs then. On a GPU it can in another batch size or chunking as well; in inference on a CPU it cannot: there frames
run through compiled loops (`asr.stacks._hm_lstm_on_cpu`), in which an item gives the same bits whatever stands beside
it. torch's operations, below, are for other devices, and for a model that is exported or whose operations are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import NonNegativeFloat, PositiveFloat, Probability, StackOptions
from asr.nn.cells import full_on_cpu
from asr.nn.masking import valid_mask, zero_padding
from asr.nn.products import Linear
from asr.stacks import _hm_lstm_on_cpu
from asr.stacks._hm_lstm_on_cpu import NORM_EPSILON
from asr.stacks.base import Stack

Boundaries = Literal["step", "sample", "soft"]


class Config(StackOptions):
    """Options of `stack=hm_lstm`."""

    boundaries: Boundaries = Field(
        "step",
        description="in training, step: z = 1 if p > 1/2; sample: with probability p. Both threshold in evaluation."
        " soft: z = p, always, and so every layer moves in every frame",
    )
    layer_norm: bool = Field(False, description="on the sums before the gates, of all a layer's units together")
    slope_start: PositiveFloat = Field(1.0, description="a, the hard sigmoid's slope, in epoch 0")
    slope_per_epoch: NonNegativeFloat = Field(0.04, description="the slope grows by so much an epoch")
    slope_max: PositiveFloat = Field(5.0, description="up to here")
    dropout: Probability = Field(0.0, description="on what the output module takes of each layer; the paper has none")


def build(config: Config, input_size: int) -> HmLstm:
    """Make the stack that `config` describes."""
    return HmLstm(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        boundaries=config.boundaries,
        layer_norm=config.layer_norm,
        slope_start=config.slope_start,
        slope_per_epoch=config.slope_per_epoch,
        slope_max=config.slope_max,
        dropout=config.dropout,
    )


class HmLstmState(NamedTuple):
    """What a stream carries.

    hidden: (B, L, D), h of each layer.
    cell: (B, L, D), c of each layer.
    boundary: (B, L - 1), z of each layer but the top one.
    """

    hidden: Tensor
    cell: Tensor
    boundary: Tensor


class HmLstm(Stack):
    """L layers whose boundaries are learned, and the gated output module; see `Config` for the options.

    The paper names neither the initial weights nor the forget gate's bias: here the recurrent matrices are orthogonal
    for each gate and that bias starts at 1, as in the other LSTMs of this toolkit. Its "layer normalisation" says not
    where; here it is on the sums before the gates, each layer's 4 D + 1 (top: 4 D) together, with a scale and a shift
    for each.

    Attributes:
        slope: a; a buffer, so that a checkpoint holds it.
        packed: the weights as the CPU's loop reads them, once they do not change any more.
    """

    slope: Tensor
    packed: tuple[Tensor, Tensor] | None = None
    lookahead_frames = 0

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        boundaries: Boundaries = "step",
        layer_norm: bool = False,
        slope_start: float = 1.0,
        slope_per_epoch: float = 0.04,
        slope_max: float = 5.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if slope_max < slope_start:
            raise ValueError(
                f"stack.slope_max: got {slope_max}, expected at least stack.slope_start={slope_start}: the slope grows"
            )
        self.hidden_size = self.output_size = hidden_size
        self.num_layers = num_layers
        self.mode: Boundaries = boundaries
        self.slope_start, self.slope_per_epoch, self.slope_max = slope_start, slope_per_epoch, slope_max
        self.register_buffer("slope", torch.tensor(slope_start))
        self.weights, self.biases, self.scales = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer in range(num_layers):
            is_top = layer == num_layers - 1
            features = 4 * hidden_size + (not is_top)
            self.weights.append(_initial_weight(hidden_size, 1 + (not is_top) + (layer > 0), features))
            bias = torch.zeros(features)
            bias[hidden_size : 2 * hidden_size] = 1.0
            self.biases.append(nn.Parameter(bias))
            if layer_norm:
                self.scales.append(nn.Parameter(torch.ones(features)))
        self.projection = Linear(input_size, self.biases[0].shape[0], bias=False)  # W of layer 1
        self.dropout = nn.Dropout(dropout)
        self.layer_gates = Linear(num_layers * hidden_size, num_layers, bias=False)  # w_l
        self.output = Linear(num_layers * hidden_size, hidden_size, bias=False)  # V_l side by side

    def set_epoch(self, epoch: int) -> None:
        """Set the slope for `epoch`, counted from 0: a = min(slope_max, slope_start + slope_per_epoch epoch)."""
        self.slope.fill_(min(self.slope_max, self.slope_start + self.slope_per_epoch * epoch))

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _, _ = self._run(zero_padding(inputs, lengths), self.initial_state(len(inputs), inputs))
        return zero_padding(self._output(hidden), lengths), lengths

    def boundaries(self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]) -> Bool[Tensor, "B S M"]:
        """Where each layer but the top one ends a segment, M = L - 1; False in the padding. As `forward` draws them."""
        _, boundary, _ = self._run(zero_padding(inputs, lengths), self.initial_state(len(inputs), inputs))
        return (boundary > 0.5) & valid_mask(lengths, inputs.shape[1])[..., None]

    def initial_state(self, batch_size: int, like: Tensor) -> HmLstmState:
        zeros = like.new_zeros(batch_size, self.num_layers, self.hidden_size, dtype=self.biases[0].dtype)
        return HmLstmState(zeros, zeros, zeros[:, 1:, 0])

    def step(self, chunk: Tensor, state: HmLstmState) -> tuple[Tensor, HmLstmState]:
        if not chunk.shape[1]:
            return chunk.new_zeros(len(chunk), 0, self.output_size), state
        hidden, _, state = self._run(chunk, state)
        return self._output(hidden), state

    def flush(self, state: HmLstmState) -> Tensor:
        return state.hidden.new_zeros(len(state.hidden), 0, self.output_size)

    def _run(self, inputs: Tensor, state: HmLstmState) -> tuple[Tensor, Tensor, HmLstmState]:
        """All layers over at least one frame: h (B, S, L, D), z (B, S, L - 1), and the state after the last frame."""
        projected = self.projection(inputs.transpose(0, 1)).to(self.biases[0].dtype)  # (S, B, 4D + 1), in one product
        thresholds = None
        if self.mode != "soft":
            by_frame = (len(projected), self.num_layers - 1, len(inputs), 1)
            draw = self.mode == "sample" and self.training
            thresholds = torch.rand(by_frame, device=inputs.device) if draw else projected.new_full(by_frame, 0.5)
        if full_on_cpu.fits(self.weights[0]):
            parameters = list(self.weights), list(self.biases), list(self.scales)
            hidden, boundary, cell = _hm_lstm_on_cpu.recur(
                projected, state, self.slope, thresholds, parameters, packed=self.packed
            )
        else:
            hidden, boundary, cell = _Loop.apply(  # type: ignore[misc]
                projected, *state, self.slope, thresholds, *self.weights, *self.biases, *self.scales
            )
        return (
            hidden.transpose(0, 1),
            boundary.transpose(0, 1),
            HmLstmState(hidden[-1].clone(), cell, boundary[-1].clone()),
        )

    def _output(self, hidden: Float[Tensor, "B S L D"]) -> Float[Tensor, "B S D"]:
        hidden = self.dropout(hidden)  # here and not between the layers, whose states a COPY keeps
        gates = self.layer_gates(hidden.flatten(2))  # (B, S, L)
        if torch.is_grad_enabled() or not full_on_cpu.fits(gates):
            gates = torch.sigmoid(gates)
        else:
            gates = _hm_lstm_on_cpu.loops().sigmoids(gates)
        return torch.relu(self.output((gates[..., None] * hidden).flatten(2)))

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Lay out the weights for good (`asr.nn.folding`)."""
        fits = full_on_cpu.fits(self.weights[0])
        self.packed = _hm_lstm_on_cpu.loops().pack_weights(list(self.weights)) if fits else None


def _initial_weight(size: int, num_sources: int, features: int) -> nn.Parameter:
    """(num_sources * D, features): rows for the layer's own past, for above, for below; columns for i f g o and z."""
    weight = torch.empty(num_sources * size, features).uniform_(-(size**-0.5), size**-0.5)
    for gate in weight[:size, : 4 * size].split(size, 1):
        nn.init.orthogonal_(gate)
    return nn.Parameter(weight)


class _Memory:
    """What one layer keeps of S frames for the way back. hidden, cell and boundary begin with the state before them.

    `boundary` holds 0 for the top layer, which has none. Tuples named `each_*` are the frames of a tensor, listed once:
    indexing a tensor in the loop costs as much as computing with it.
    """

    def __init__(self, num_frames: int, hidden: Tensor, cell: Tensor, weight: Tensor) -> None:
        batch, size = hidden.shape
        empty = hidden.new_empty
        self.hidden, self.cell = empty(num_frames + 1, batch, size), empty(num_frames + 1, batch, size)
        self.hidden[0], self.cell[0] = hidden, cell
        self.squashed = empty(num_frames, batch, size)  # tanh(c)
        self.operands = empty(num_frames, batch, len(weight))  # what the weight is multiplied with
        self.gates = empty(num_frames, batch, weight.shape[1])
        self.boundary = hidden.new_zeros(num_frames + 1, batch, 1)
        self.relaxed = empty(num_frames, batch, 1)  # p
        self.normalised: list[tuple[Tensor, Tensor, Tensor]] = []  # layer norm's input, mean, 1 / deviation
        self.each_hidden, self.each_cell = self.hidden.unbind(), self.cell.unbind()
        self.each_boundary = self.boundary.unbind()

    def split(self, gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """i, f, g, o of D units each, and z of one, or of none for the top layer."""
        size = self.hidden.shape[-1]
        return gates.split([size, size, size, size, gates.shape[-1] - 4 * size], -1)  # type: ignore[return-value]


class _Loop(torch.autograd.Function):
    """The recurrence of all layers over all frames.

    With `copy` = (1 - flush) (1 - update), where flush = z[l, t-1] and update = z[l-1, t], the three operations are

        c' = (1 - copy) i g + (copy + (1 - copy - flush) f) c        h' = (1 - copy) o tanh(c') + copy h

    which is exact for z of 0 and 1, and of which z's gradient is taken; with z = p (soft) it is a mixture.

    Args of `forward`:
        projected: (S, B, 4D + 1), W x of layer 1.
        hidden, cell, boundary: the state.
        slope: a.
        thresholds: (S, L - 1, B, 1), z = p > threshold; None: z = p.
        parameters: weights, biases, and with layer norm scales, of each layer.

    Returns:
        h (S, B, L, D), z (S, B, L - 1; its gradient stays inside) and the last c (B, L, D).
    """

    @staticmethod
    def forward(
        ctx,
        projected: Tensor,
        hidden: Tensor,
        cell: Tensor,
        boundary: Tensor,
        slope: Tensor,
        thresholds: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_frames, num_layers, size = len(projected), hidden.shape[1], hidden.shape[2]
        weights, biases, scales = _by_kind(parameters, num_layers)
        layers = [_Memory(num_frames, hidden[:, i], cell[:, i], weight) for i, weight in enumerate(weights)]
        for index, layer in enumerate(layers[:-1]):
            layer.boundary[0] = boundary[:, index, None]
        always = projected.new_ones(projected.shape[1], 1)  # z[0, t]
        views = [
            (
                tuple(operand.unbind() for operand in layer.operands.split(size, -1)),
                layer.operands.unbind(),
                layer.gates.unbind(),
                layer.gates[..., : 2 * size].unbind(),
                tuple(part.unbind() for part in layer.split(layer.gates)),
                layer.squashed.unbind(),
                layer.relaxed.unbind(),
            )
            for layer in layers
        ]
        limits = None if thresholds is None else [frame.unbind() for frame in thresholds.unbind()]
        # What is added to the product: the bias, unless it comes after the norm, and layer 1's projected input.
        offsets = [torch.zeros_like(bias) if scales else bias for bias in biases]
        first_offsets = (projected + offsets[0]).unbind()
        for t in range(num_frames):
            for index, layer in enumerate(layers):
                operands, each_operand, each_gate, each_input_forget, parts, squashed, relaxed = views[index]
                is_top = index == num_layers - 1
                flush = layer.each_boundary[t]
                update = layers[index - 1].each_boundary[t + 1] if index else always
                before, cell_before = layer.each_hidden[t], layer.each_cell[t]
                operands[0][t].copy_(before)
                if not is_top:
                    torch.mul(layers[index + 1].each_hidden[t], flush, out=operands[1][t])
                if index:
                    torch.mul(layers[index - 1].each_hidden[t + 1], update, out=operands[-1][t])
                gate = each_gate[t]
                torch.addmm(offsets[index] if index else first_offsets[t], each_operand[t], weights[index], out=gate)
                if scales:
                    total = gate.clone()
                    norm = torch.native_layer_norm(total, gate.shape[1:], scales[index], biases[index], NORM_EPSILON)
                    layer.normalised.append((total, *norm[1:]))
                    gate.copy_(norm[0])
                take, keep, candidate, give, detector = (part[t] for part in parts)
                each_input_forget[t].sigmoid_()
                candidate.tanh_()
                give.sigmoid_()
                if not is_top:
                    chance = torch.mul(detector, slope, out=relaxed[t]).add_(1.0).mul_(0.5).clamp_(0.0, 1.0)
                    now = layer.each_boundary[t + 1]
                    now.copy_(chance if limits is None else chance > limits[t][index])
                copy = (1.0 - flush) * (1.0 - update)
                write = 1.0 - copy
                cell_now = torch.mul(take, candidate, out=layer.each_cell[t + 1]).mul_(write)
                cell_now.addcmul_(torch.addcmul(copy, write - flush, keep), cell_before)
                torch.tanh(cell_now, out=squashed[t])
                torch.mul(give, squashed[t], out=layer.each_hidden[t + 1]).mul_(write).addcmul_(copy, before)
        ctx.save_for_backward(slope, *parameters)
        ctx.layers = layers
        outputs = torch.stack([layer.hidden[1:] for layer in layers], 2)
        boundaries = torch.cat(
            [projected.new_empty(num_frames, len(always), 0), *(z.boundary[1:] for z in layers[:-1])], 2
        )
        ctx.mark_non_differentiable(boundaries)
        return outputs, boundaries, torch.stack([layer.cell[-1] for layer in layers], 1)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        d_outputs, _, d_last_cell = gradients
        slope, *parameters = ctx.saved_tensors
        layers: list[_Memory] = ctx.layers
        num_layers, size = len(layers), layers[0].hidden.shape[-1]
        weights, biases, scales = _by_kind(parameters, num_layers)
        transposed = [weight.T for weight in weights]
        each_d_output = [d_output.unbind() for d_output in d_outputs.unbind(2)]
        # Of the frame at hand, once the frames after it and the layers above have added theirs.
        d_hidden = [torch.zeros_like(layer.hidden[0]) for layer in layers]
        d_cell = list(d_last_cell.unbind(1))
        d_boundary = [torch.zeros_like(layer.boundary[0]) for layer in layers]
        d_gates = [torch.empty_like(layer.gates) for layer in layers]
        d_totals = [torch.empty_like(layer.gates) for layer in layers] if scales else d_gates
        always = torch.ones_like(layers[0].boundary)
        updates = [always, *(layer.boundary for layer in layers[:-1])]
        factors = [_Factors(layer, update[1:], slope) for layer, update in zip(layers, updates, strict=True)]
        views = [
            (
                d_gate[..., : 3 * size].unflatten(-1, (3, size)).unbind(),
                tuple(part.unbind() for part in layer.split(d_gate)),
                d_gate.unbind(),
                d_total.unbind(),
            )
            for layer, d_gate, d_total in zip(layers, d_gates, d_totals, strict=True)
        ]
        for t in reversed(range(len(d_outputs))):
            for index in reversed(range(num_layers)):
                layer, factor = layers[index], factors[index]
                by_cell, parts, each_d_gate, each_d_total = views[index]
                is_top = index == num_layers - 1
                flush, update = layer.each_boundary[t], factor.update[t]
                d_now, d_cell_now = d_hidden[index].add_(each_d_output[index][t]), d_cell[index]
                d_cell_now = d_cell_now.addcmul(d_now, factor.through[t])
                torch.mul(d_cell_now[:, None], factor.of_cell[t], out=by_cell[t])
                torch.mul(d_now, factor.of_give[t], out=parts[3][t])
                if not is_top:
                    torch.mul(d_boundary[index], factor.of_detector[t], out=parts[4][t])
                d_total = each_d_gate[t]
                if scales:
                    total, mean, inverse = layer.normalised[t]
                    d_total, _, _ = torch.ops.aten.native_layer_norm_backward(
                        d_total,
                        total,
                        total.shape[1:],
                        mean,
                        inverse,
                        scales[index],
                        biases[index],
                        (True, False, False),
                    )
                    each_d_total[t].copy_(d_total)
                d_operands = torch.mm(d_total, transposed[index]).split(size, 1)
                d_copy = (d_now * factor.copy_hidden[t]).addcmul_(d_cell_now, factor.copy_cell[t]).sum(1, keepdim=True)
                d_hidden[index] = d_operands[0].addcmul(d_now, factor.copy[t])
                d_cell[index] = d_cell_now * factor.carry[t]
                if index:
                    d_below, below = d_operands[-1], layers[index - 1].each_hidden[t + 1]
                    d_hidden[index - 1].addcmul_(d_below, update)
                    d_boundary[index - 1].add_((d_below * below).sum(1, keepdim=True)).addcmul_(d_copy, flush - 1.0)
                if not is_top:
                    d_above, above = d_operands[1], layers[index + 1].each_hidden[t]
                    d_hidden[index + 1].addcmul_(d_above, flush)
                    d_flush = (d_above * above).addcmul_(d_cell_now, factor.forgotten[t], value=-1.0)
                    d_boundary[index] = d_flush.sum(1, keepdim=True).addcmul_(d_copy, update - 1.0)
        d_weights = [
            layer.operands.flatten(0, 1).T @ d_total.flatten(0, 1)
            for layer, d_total in zip(layers, d_totals, strict=True)
        ]
        d_biases = [d_gate.sum((0, 1)) for d_gate in d_gates]
        d_scales = []
        for layer, d_gate in zip(layers, d_gates, strict=True) if scales else ():
            totals, means, inverses = (torch.stack(values) for values in zip(*layer.normalised, strict=True))
            d_scales.append((d_gate * (totals - means) * inverses).sum((0, 1)))
        d_state = (
            torch.stack(d_hidden, 1),
            torch.stack(d_cell, 1),
            torch.cat([d_hidden[0].new_empty(len(d_hidden[0]), 0), *d_boundary[:-1]], 1),
        )
        d_parameters = (
            gradient.to(parameter.dtype)
            for gradient, parameter in zip((*d_weights, *d_biases, *d_scales), parameters, strict=True)
        )
        return d_totals[0], *d_state, None, None, *d_parameters


class _Factors:
    """Derivatives of one layer's c' and h' for all frames at once; what the loop back multiplies with, (S, B, ...).

    Args:
        layer: what the loop kept.
        update: (S, B, 1), z of the layer below.
        slope: a.
    """

    def __init__(self, layer: _Memory, update: Tensor, slope: Tensor) -> None:
        flush, before = layer.boundary[:-1], layer.cell[:-1]
        take, keep, candidate, give, _ = layer.split(layer.gates)
        copy = (1.0 - flush) * (1.0 - update)
        write = 1.0 - copy
        forgotten = keep * before
        of_take = write * candidate * take * (1.0 - take)
        of_keep = (write - flush) * forgotten * (1.0 - keep)
        of_candidate = write * take * (1.0 - candidate.square())
        inside = (layer.relaxed > 0.0) & (layer.relaxed < 1.0)
        self.update, self.copy = update.unbind(), copy.unbind()
        self.of_cell = torch.stack((of_take, of_keep, of_candidate), 2).unbind()  # d(pre of i, f, g) / d(c')
        self.of_give = (write * layer.squashed * give * (1.0 - give)).unbind()  # d(pre of o) / d(h')
        self.of_detector = (0.5 * slope * inside).unbind()  # straight through: as if z were p
        self.through = (write * give * (1.0 - layer.squashed.square())).unbind()  # h' by c'
        self.carry = (copy + (write - flush) * keep).unbind()  # c' by c
        self.copy_hidden = (layer.hidden[:-1] - give * layer.squashed).unbind()  # h' by copy
        self.copy_cell = (before - forgotten - take * candidate).unbind()  # c' by copy
        self.forgotten = forgotten.unbind()  # - c' by flush, besides that through copy


def _by_kind(parameters: Sequence[Tensor], num_layers: int) -> tuple[Sequence[Tensor], ...]:
    """Weights, biases, scales (none without layer norm)."""
    return tuple(parameters[kind * num_layers : (kind + 1) * num_layers] for kind in range(3))
