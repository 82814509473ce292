"""The phased LSTM, frame by frame from the equations (arXiv 1610.09513)."""

import torch
from torch import Tensor

from asr.stacks.phased_lstm import PhasedLstm, PhasedLstmLayer


def openness(layer: PhasedLstmLayer, time: Tensor, leak: float) -> Tensor:
    """How far each unit is open at a time: (H,)."""
    period, ratio_on = layer.period.abs(), layer.ratio_on.abs()
    phase = torch.remainder(time - layer.shift, period) / period
    opening = 2 * phase / ratio_on
    closed_or_closing = torch.where(phase < ratio_on, 2 - opening, leak * phase)
    return torch.where(phase < ratio_on / 2, opening, closed_or_closing)


def reference(stack: PhasedLstm, inputs: Tensor, times: Tensor, leak: float) -> Tensor:
    """Run `stack` without dropout on one (S, D) utterance with time stamps (S,): (S, H)."""
    hidden = inputs
    for layer in stack.layers:
        h = c = torch.zeros(stack.hidden_size, dtype=inputs.dtype)
        w_i, w_f, w_o = layer.peepholes if layer.peepholes is not None else torch.zeros(3, len(h), dtype=h.dtype)
        outputs = []
        for frame, time in zip(hidden, times, strict=True):
            k = openness(layer, time, leak)
            total = layer.projection.weight @ frame + layer.projection.bias + layer.recurrent @ h
            p_g, p_i, p_f, p_o = total.split(stack.hidden_size)
            i = torch.sigmoid(p_i + w_i * c)
            f = torch.sigmoid(p_f + w_f * c)
            new_c = f * c + i * torch.tanh(p_g)
            o = torch.sigmoid(p_o + w_o * new_c)
            h = k * o * torch.tanh(new_c) + (1 - k) * h
            c = k * new_c + (1 - k) * c
            outputs.append(h)
        hidden = torch.stack(outputs)
    return hidden
