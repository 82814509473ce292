"""Batch norm over the real frames of a batch: padding never enters the statistics.

Deep Speech 2, section 3.2: one mean and one variance for each hidden unit, over all (time, item) pairs of the
minibatch. Two forms are needed. `MaskedBatchNorm` normalises activations (after a convolution).
`NormalizedLinear` is B(W x): a projection whose batch norm is folded into its weights, so that any fused recurrent
kernel runs it unchanged, in training too.

Statistics are summed over all ranks, so a global batch gives the same result on any number of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.nn import batch_norm_on_gpu, products
from asr.nn.cells.base import product_type
from asr.nn.distributed import sum_over_ranks
from asr.nn.masking import Padding, valid_mask

EPSILON = 1e-5  # torch's BatchNorm default, in units of variance
MOMENTUM = 0.1  # share of the newest batch in the running statistics, torch's default


class _RunningStatistics(nn.Module):
    """Scale, shift and running moments of a batch norm over `num_features` units."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_features))
        self.shift = nn.Parameter(torch.zeros(num_features))
        self.running_mean: Tensor
        self.running_variance: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_variance", torch.ones(num_features))

    def gain_and_bias(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """What to multiply by and then to add, (C,) each, where these are the moments."""
        gain = torch.rsqrt(variance + EPSILON) * self.scale
        return gain, self.shift - mean * gain

    def running_gain_and_bias(self) -> tuple[Tensor, Tensor]:
        """The same for evaluation, of the running moments."""
        return self.gain_and_bias(self.running_mean, self.running_variance)

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running moments towards this batch's; the variance is made unbiased, as torch does.

        A global batch without a real frame (count 0), all of whose utterances were left out, moves nothing.
        """
        unbiased = variance * (count / (count - 1).clamp(min=1))
        momentum = MOMENTUM * (count > 0).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_variance.lerp_(unbiased.to(self.running_variance.dtype), momentum)


class _Normalize(torch.autograd.Function):
    """y = clip(scale (x - mean) / sqrt(variance + eps) + shift) over rows, in as few passes over them as can be.

    Rows of padding hold 0 in x, so sums over all rows are sums over the real ones; they hold 0 in y and dx again. The
    real ones' number, given for this rank, comes back for all.
    """

    @staticmethod
    def forward(ctx, x: Tensor, padding: Padding, real_rows: Tensor, scale: Tensor, shift: Tensor, clip: float | None):
        sums = sum_over_ranks(torch.cat((x.sum(0), _column_dots(x, x), real_rows[None])))
        real_rows = sums[-1]
        count = real_rows.clamp(min=1)
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0.0)
        inverse = torch.rsqrt(variance + EPSILON)
        gain = scale * inverse
        y = torch.addcmul(shift - mean * gain, x, gain)
        if clip is not None:
            y.clamp_(0.0, clip)
        padding.zero_(y)
        ctx.save_for_backward(x, y, count, scale, mean, inverse)
        ctx.padding, ctx.clip = padding, clip
        ctx.mark_non_differentiable(mean, variance, real_rows)
        return y, mean, variance, real_rows

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, y, count, scale, mean, inverse = ctx.saved_tensors
        dy = gradients[0].contiguous()
        dy = dy.clone() if ctx.clip is None else torch.ops.aten.hardtanh_backward(dy, y, 0.0, ctx.clip)
        ctx.padding.zero_(dy)
        d_shift = dy.sum(0)
        d_scale = (_column_dots(dy, x) - mean * d_shift) * inverse
        # A rank's own sums are its share of d_scale and d_shift; the input's gradient needs the whole batch's.
        mean_dy, mean_dy_x = (sum_over_ranks(torch.cat((d_shift, d_scale))) / count).chunk(2)
        gain = scale * inverse
        slope = gain * inverse * mean_dy_x
        dx = torch.addcmul(slope * mean - gain * mean_dy, dy, gain).addcmul_(x, slope, value=-1.0)
        ctx.padding.zero_(dx)
        return dx, None, None, d_scale, d_shift, None


def _column_dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of each column of a with that of b: (R, C), (R, C) -> (C,).

    On a CPU, with few columns, a whole product a^T b is one fast pass; with many it would cost more than it saves. On a
    GPU it would be rounded to TF32, and the variance is a difference of such sums.
    """
    if a.shape[1] <= 128 and not a.is_cuda:
        return (a.T @ b).diagonal()
    return (a * b).sum(0)


class MaskedBatchNorm(_RunningStatistics):
    """Batch norm over the last axis, statistics over the real frames only; padding comes out as exactly 0.

    Args:
        num_features: units C.
        clip: also apply the clipped ReLU min(max(y, 0), clip); None: no activation.
        narrow: what reads the result rounds it to autocast's type, so that it may be written in that.
    """

    def __init__(self, num_features: int, *, clip: float | None = None, narrow: bool = False) -> None:
        super().__init__(num_features)
        self.clip = clip
        self.narrow = narrow

    def forward(
        self, hidden: Float[Tensor, "B S *F C"], lengths: Int[Tensor, "B"], *, zeroed: bool = False
    ) -> Float[Tensor, "B S *F C"]:
        """Normalise.

        Args:
            hidden: (B, S, C) or (B, S, F, C); padding frames may hold anything.
            lengths: (B,) int64 real frames.
            zeroed: they hold 0, which saves a pass over them.
        """
        if self.training and batch_norm_on_gpu.fits(hidden, self.scale):
            out, mean, variance, count = batch_norm_on_gpu.normalize(
                hidden,
                lengths,
                self.scale,
                self.shift,
                clip=self.clip,
                epsilon=EPSILON,
                dtype=product_type(self.scale) if self.narrow else self.scale.dtype,
            )
            self.update(mean, variance, count)
            return out
        padding = Padding(lengths, hidden.shape[1])
        if self.training and not zeroed:
            hidden = padding.zero(hidden)
        dtype = self.scale.dtype
        rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
        if not self.training:
            gain, bias = self.running_gain_and_bias()
            out = torch.addcmul(bias, rows, gain).view(hidden.shape)
            out = out if self.clip is None else out.clamp(0.0, self.clip)
            return padding.zero(out)
        per_frame = hidden[0, 0].numel() // hidden.shape[-1]
        real_rows = (lengths.sum() * per_frame).to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            result = _Normalize.apply(rows, padding, real_rows, self.scale, self.shift, self.clip)
        assert isinstance(result, tuple)
        out, mean, variance, count = result
        self.update(mean, variance, count)
        return out.view(hidden.shape)


class NormalizedLinear(nn.Module):
    """B(W x) + nothing else: a linear map without bias, then batch norm over all real frames.

    Calling it computes that as it stands. `folded` returns one weight and one bias that compute both, for kernels that
    project by themselves: the mean and variance of W x over the batch are W mean(x) and diag(W cov(x) W^T), so they
    are known before the projection is. Gradients flow through them.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size))
        nn.init.uniform_(self.weight, -(input_size**-0.5), input_size**-0.5)
        self.norm = MaskedBatchNorm(output_size)

    def forward(self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B S O"]:
        """Project and normalise.

        Args:
            inputs: padding frames hold 0.
            lengths: (B,) int64.
        """
        return self.norm(products.linear(inputs, self.weight), lengths, zeroed=True)

    def folded(
        self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "O D"], Float[Tensor, "O"]]:
        """Weight (O, D) and bias (O,) so that `linear(inputs, weight, bias)` is the normalised projection.

        Args:
            inputs: padding frames hold 0. Used in training only.
            lengths: (B,) int64.
        """
        if not self.training:
            return self.running_folded()
        return self._fold(*self.norm.gain_and_bias(*self._moments(inputs, lengths)))

    def running_folded(self) -> tuple[Float[Tensor, "O D"], Float[Tensor, "O"]]:
        """Weight and bias that evaluation uses, of the running statistics."""
        return self._fold(*self.norm.running_gain_and_bias())

    def _fold(self, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * gain[:, None], bias

    def _moments(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(inputs.device.type, enabled=False):  # variances are differences: not in bf16
            of_inputs = batch_norm_on_gpu.moments if batch_norm_on_gpu.fits(inputs, self.weight) else _moments
            input_mean, covariance, count = of_inputs(inputs, lengths, self.weight.dtype)
            divisor = count.clamp(min=1)
            variance = sum_over_ranks(((self.weight @ covariance) * self.weight).sum(1)) / divisor
            variance, mean = variance.clamp(min=0.0), self.weight @ input_mean
        self.norm.update(mean.detach(), variance.detach(), count)
        return mean, variance


def _moments(
    inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"], dtype: torch.dtype
) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"], Float[Tensor, ""]]:
    """Of the real frames, whose padding holds 0, in this type.

    Returns:
        The mean of all ranks', this rank's share of their covariance times their number, and their number.
    """
    rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
    sums = sum_over_ranks(torch.cat((rows.sum(0), lengths.sum().to(dtype)[None])))
    count = sums[-1].detach()
    mean = sums[:-1] / count.clamp(min=1)
    mask = valid_mask(lengths, inputs.shape[1]).view(-1, 1)
    centred = (rows - mean) * mask
    return mean, centred.T @ centred, count
