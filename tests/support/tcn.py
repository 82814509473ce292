"""The temporal convolutional network, frame by frame from the equations (arXiv 1803.01271, section 3)."""

import torch
from torch import Tensor

from asr.stacks.tcn import DilatedConvolution, Tcn


def reference(stack: Tcn, inputs: list[Tensor]) -> list[Tensor]:
    """Run `stack`, without dropout, on a list of unpadded (S_i, D) utterances.

    Batch norm takes its moments from these utterances in training mode, and the running ones in eval mode.
    """
    hidden = inputs
    for block in stack.blocks:
        mixed = hidden
        for convolution in (block.first, block.second):
            mixed = [torch.clamp(item, min=0.0) for item in convolve(convolution, mixed)]
        around = hidden
        if block.around is not None:
            around = [torch.stack([block.around.weight @ x + block.around.bias for x in item]) for item in hidden]
        hidden = [torch.clamp(u + x, min=0.0) for u, x in zip(mixed, around, strict=True)]
    return hidden


def convolve(convolution: DilatedConvolution, inputs: list[Tensor]) -> list[Tensor]:
    """Norm of F(s) = sum over j of f(j) x[s - d j]; of x[s + d (k - 1) / 2 - d j] when centred; x is 0 outside."""
    weight = convolution.weight
    size, kernel, _ = weight.shape
    if convolution.norm is None:
        lengths = torch.stack([torch.sqrt(sum(v * v for v in filters.flatten())) for filters in weight])
        weight = weight * (convolution.gain.flatten() / lengths)[:, None, None]
    outputs = []
    for item in inputs:
        out = torch.zeros(len(item), size, dtype=weight.dtype)
        for s in range(len(item)):
            for j in range(kernel):
                source = s + convolution.lookahead - convolution.dilation * j
                if 0 <= source < len(item):
                    out[s] += weight[:, kernel - 1 - j] @ item[source]
        outputs.append(out)
    if convolution.norm is None:
        return [out + convolution.bias for out in outputs]
    norm = convolution.norm
    mean, variance = norm.running_mean, norm.running_variance
    if norm.training:
        frames = [frame for out in outputs for frame in out]
        mean = sum(frames) / len(frames)
        variance = sum((frame - mean) ** 2 for frame in frames) / len(frames)
    return [norm.scale * (out - mean) / torch.sqrt(variance + 1e-5) + norm.shift for out in outputs]
