"""What the stacks cost, side by side: training, folding, element-wise and full recurrences, streaming.

    python benchmarks/stacks.py [ROW ...] [--repeats 10] [--threads 1] [--precision float32]

training: forward + backward of every stack at equal parameters, 16 x 512 frames of 512 features, beside nn.GRU.
dilated:  a folded dilated stack against the undilated one of the same depth and parameters, ours and nn.GRU.
diagonal: a diagonal GRU layer against nn.GRU of the same width and against a plain loop over time.
kernels:  the time loop of a diagonal GRU, on a GPU also batch norm in training, each alone, against moving its bytes
          as fast as this device copies: of batch norm's, what has to be read twice twice.
full:     a bidirectional layer of each cell with full matrices, 800 units, against nn.GRU, nn.LSTM and nn.RNN.
tcn:      a frame by ring buffer against computing its receptive field anew.
streams:  one step of 16 streams against one stream, every stack that streams.

One JSON line a row; a ratio above 1 means that the first one is that many times faster. Medians, the candidates taking
turns. On a GPU, where there is one.

Precision is the same for all: float32 is whole float32 and tf32 allows TF32, for matrix products, convolutions and
recurrences alike, where torch's default allows it for the last two only. bf16 is autocast, with TF32 for what stays in
float32. nn.GRU, nn.LSTM and nn.RNN run in float16 under it on a GPU.
"""

import argparse
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import emit, seconds_alone, side_by_side, spread
from torch import Tensor, nn

from asr import stacks
from asr.config.options import names, validate_stack
from asr.nn import batch_norm_on_gpu
from asr.nn.batch_norm import MaskedBatchNorm
from asr.nn.cells import elementwise
from asr.nn.folding import fold_norms
from asr.nn.precision import float32_settings
from asr.stacks.base import Stack

BATCH, FRAMES, FEATURES = 16, 512, 512
STREAMING: dict[str, dict[str, Any]] = {  # options that make a stack forward-only, where its defaults do not
    name: {"bidirectional": False} for name in ("rnn", "lstm", "gru", "dilated", "diagonal", "linear_rnn")
} | {"tcn": {"padding": "causal"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], default=[])
    parser.add_argument("--repeats", type=int, default=10, help="of each candidate, 2 or more (10)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for setting in float32_settings():
        setting.fp32_precision = "ieee" if options.precision == "float32" else "tf32"
    FACTS["precision"] = options.precision
    for row in options.rows or ROWS:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            ROWS[row](options.repeats)


def training(repeats: int) -> None:
    """Every stack, two layers, forward-only where it can be, with the parameters of two nn.GRU layers of 512 units."""
    yardstick = nn.GRU(FEATURES, FEATURES, num_layers=2, batch_first=True).to(DEVICE)
    parameters = count(yardstick)
    for name in names():
        options = {"name": name, "num_layers": 2, **STREAMING.get(name, {})}
        stack = sized(options, parameters)
        compare(
            "training",
            {"stack": training_step(stack), "nn.GRU": training_step(yardstick)},
            repeats,
            stack=options,
            parameters={"stack": count(stack), "nn.GRU": parameters},
        )


def dilated(repeats: int) -> None:
    """9 layers of 64 GRU units, dilations 1 to 256; no norm, so that nothing but the recurrence differs."""
    shared = {"num_layers": 9, "hidden_size": 64, "bidirectional": False, "batch_norm": "none"}
    for frames in (512, 1024):
        folded = make({"name": "dilated", "cell": "gru", **shared}, 64)
        plain = make({"name": "gru", **shared}, 64)
        theirs = nn.GRU(64, 64, num_layers=9, batch_first=True).to(DEVICE)
        steps = {
            "dilated": training_step(folded, frames, 64),
            "undilated": training_step(plain, frames, 64),
            "nn.GRU": training_step(theirs, frames, 64),
        }
        compare("dilated", steps, repeats, frames=frames, parameters=count(folded))


def diagonal(repeats: int) -> None:
    """One layer; the plain loop projects each frame when it comes, as most people would write it."""
    for width in (128, 256, 512):
        layer = {"num_layers": 1, "hidden_size": width, "bidirectional": False, "batch_norm": "none"}
        steps = {
            "diagonal": training_step(make({"name": "diagonal", "cell": "gru", **layer}, width), FRAMES, width),
            "nn.GRU": training_step(nn.GRU(width, width, batch_first=True).to(DEVICE), FRAMES, width),
            "plain loop": training_step(PlainDiagonalGru(width).to(DEVICE), FRAMES, width),
            "projection alone": training_step(nn.Linear(width, 3 * width).to(DEVICE), FRAMES, width),
        }
        compare("diagonal", steps, repeats, width=width)


def kernels(repeats: int) -> None:
    """What a layer's time loop has to read and write at least once: projections, states, and their gradients."""
    bandwidth = copy_bandwidth(repeats)
    width = 512
    for batch in (16, 64):
        for kind in (torch.float32, torch.bfloat16):
            weight = torch.randn(1, 3 * width, device=DEVICE)
            initial = torch.zeros(1, batch, width, device=DEVICE)
            projected = torch.randn(FRAMES, batch, 3 * width, device=DEVICE).to(kind)
            loops = elementwise._loops(weight)
            assert loops is not None
            (states,) = loops.forward("gru", weight, (initial,), [projected])
            d_states = torch.randn_like(states)
            calls = {
                "forward": partial(loops.forward, "gru", weight, (initial,), [projected]),
                "backward": partial(loops.backward, "gru", weight, (initial,), [projected], (states,), d_states, ()),
            }
            moved = {"forward": [projected, states], "backward": [projected, states, d_states, projected]}
            facts = {"items": batch, "frames": FRAMES, "width": width, "projections": str(kind).removeprefix("torch.")}
            for name, call in calls.items():
                against_the_copy(
                    call, moved[name], repeats, bandwidth,
                    loop=f"diagonal gru {name}", loops=loops.__name__, **facts,
                )  # fmt: skip
    if DEVICE == "cuda":
        batch_norm(repeats, bandwidth)


def batch_norm(repeats: int, bandwidth: float) -> None:
    """On what the two convolutions of Deep Speech 2 and a layer of 800 units give, of 64 utterances of 15 s."""
    for shape in ((64, 750, 81, 32), (64, 750, 41, 32), (64, 750, 800)):
        norm = MaskedBatchNorm(shape[-1], clip=20.0, narrow=True).to(DEVICE)
        x = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        lengths = torch.full(shape[:1], shape[1], device=DEVICE)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            forward = partial(norm, x, lengths)
            y = forward()
        gradient = partial(torch.autograd.grad, y, x, torch.randn_like(y), retain_graph=True)
        for name, call, moved in (
            ("forward", torch.autocast(DEVICE, dtype=torch.bfloat16)(forward), [x, x, y]),
            ("backward", gradient, [x, y, x, y, x]),
        ):
            against_the_copy(
                call, moved, repeats, bandwidth,
                loop=f"batch norm {name}", kernels=batch_norm_on_gpu.fits(x, norm.scale), shape=shape,
            )  # fmt: skip


def against_the_copy(
    call: Callable[[], Any], moved: list[Tensor], repeats: int, bandwidth: float, **facts: Any
) -> None:
    """Tell a call's seconds beside those of a copy of as many bytes."""
    seconds = spread(seconds_alone(call, repeats=repeats))
    size = sum(tensor.numel() * tensor.element_size() for tensor in moved)
    emit(
        benchmark="stacks kernels",
        **FACTS,
        **facts,
        seconds=seconds,
        bytes=size,
        copy_bytes_per_second=bandwidth,
        seconds_at_copy_bandwidth=size / bandwidth,
        times_the_copy=seconds["median"] * bandwidth / size,
    )


def copy_bandwidth(repeats: int) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    source = torch.empty(2**28, dtype=torch.uint8, device=DEVICE).fill_(1)
    target = torch.empty_like(source)
    seconds = seconds_alone(partial(target.copy_, source), repeats=repeats)
    return 2 * source.numel() / spread(seconds)["median"]


def full(repeats: int) -> None:
    """One layer without norm. cuDNN knows neither the clip nor a reset before the product; its nearest stand beside."""
    width = 800
    layers: dict[str, tuple[dict[str, Any], nn.Module]] = {
        "GRU": ({"name": "gru"}, nn.GRU(width, width, batch_first=True, bidirectional=True)),
        "LSTM": ({"name": "lstm"}, nn.LSTM(width, width, batch_first=True, bidirectional=True)),
        "GRU, reset before": (
            {"name": "gru", "reset": "before"},
            nn.GRU(width, width, batch_first=True, bidirectional=True),
        ),
        "clipped ReLU": (
            {"name": "rnn", "activation": "clipped_relu"},
            nn.RNN(width, width, nonlinearity="relu", batch_first=True, bidirectional=True),
        ),
    }
    shared = {"num_layers": 1, "bidirectional": True, "batch_norm": "none", "hidden_size": width}
    for cell, (options, neighbour) in layers.items():
        ours, theirs = make({**options, **shared}, width), neighbour.to(DEVICE)
        name = f"nn.{type(theirs).__name__}"
        for batch in (16, 64):
            steps = {cell: training_step(ours, FRAMES, width, batch), name: training_step(theirs, FRAMES, width, batch)}
            compare("full", steps, repeats, items=batch, width=width, passes="forward + backward")
            inputs = torch.randn(batch, FRAMES, width, device=DEVICE)
            lengths = torch.full((batch,), FRAMES, device=DEVICE)
            calls = {
                cell: in_inference(partial(ours, inputs, lengths)),
                name: in_inference(partial(theirs, inputs)),
            }
            compare("full", calls, repeats, items=batch, width=width, passes="forward")


def tcn(repeats: int) -> None:
    """8 blocks of 64 channels, kernel 5: 4081 frames of receptive field."""
    stack = make({"name": "tcn", "num_layers": 8, "hidden_size": 64, "kernel_size": 5, "padding": "causal"}, 64)
    fold_norms(stack)  # as a recogniser does
    assert stack.past_frames is not None
    field = torch.randn(1, stack.past_frames + 1, 64, device=DEVICE)
    lengths = torch.tensor([field.shape[1]], device=DEVICE)
    state = stack.step(field, stack.initial_state(1, field))[1]
    for frames in (1, 8):
        chunk = torch.randn(1, frames, 64, device=DEVICE)
        calls = {
            "ring buffer": in_inference(partial(stack.step, chunk, state)),
            "receptive field": in_inference(partial(stack, field, lengths)),
        }
        compare("tcn", calls, repeats, chunk_frames=frames, receptive_field_frames=field.shape[1])


def streams(repeats: int) -> None:
    """A step of one frame and one of 8 (320 ms at a frame every 40 ms), 3 layers of 256 units."""
    for name in names():
        stack = make({"name": name, "num_layers": 3, "hidden_size": 256, **STREAMING.get(name, {})}, 256)
        fold_norms(stack)  # as a recogniser does
        if stack.lookahead_frames is None:
            continue
        for frames in (1, 8):
            calls = {}
            for number in (1, 16):
                chunk = torch.randn(number, frames, 256, device=DEVICE)
                state = stack.step(chunk, stack.initial_state(number, chunk))[1]
                calls[f"{number} streams"] = in_inference(partial(stack.step, chunk, state))
            compare("streams", calls, 10 * repeats, stack=name, chunk_frames=frames)


ROWS: dict[str, Callable[[int], None]] = {
    "training": training,
    "dilated": dilated,
    "diagonal": diagonal,
    "kernels": kernels,
    "tcn": tcn,
    "streams": streams,
    "full": full,
}
FACTS: dict[str, Any] = {}  # that every row tells
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class PlainDiagonalGru(nn.Module):
    """A diagonal GRU as most people would write it: a cell, called frame by frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 3 * width)
        self.recurrent = nn.Parameter(torch.empty(3, width).uniform_(-0.5, 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        hidden = inputs.new_zeros(inputs.shape[0], inputs.shape[2])
        outputs = []
        for frame in inputs.unbind(1):
            for_reset, for_update, for_candidate = self.projection(frame).chunk(3, -1)
            reset = torch.sigmoid(for_reset + self.recurrent[0] * hidden)
            update = torch.sigmoid(for_update + self.recurrent[1] * hidden)
            candidate = torch.tanh(for_candidate + self.recurrent[2] * (reset * hidden))
            hidden = update * hidden + (1 - update) * candidate
            outputs.append(hidden)
        return torch.stack(outputs, 1)


def make(options: dict[str, Any], input_size: int) -> Stack:
    return stacks.build(validate_stack(options), input_size).to(DEVICE)


def sized(options: dict[str, Any], parameters: int) -> Stack:
    """The stack of `options` whose width, a multiple of 8, comes nearest to so many parameters."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return count(stacks.build(validate_stack({**options, "hidden_size": width}), FEATURES))

    widths = range(64, 2049, 8)
    above = bisect_left(widths, parameters, hi=len(widths) - 1, key=size)
    options["hidden_size"] = min(widths[max(0, above - 1) : above + 1], key=lambda w: abs(size(w) - parameters))
    return make(options, FEATURES)


def training_step(
    module: nn.Module, frames: int = FRAMES, features: int = FEATURES, batch: int = BATCH
) -> Callable[[], None]:
    """Forward and backward, gradients of inputs and weights, of a `Stack` or a batch-first torch module."""
    inputs = torch.randn(batch, frames, features, device=DEVICE, requires_grad=True)
    lengths = torch.full((batch,), frames, device=DEVICE)

    def step() -> None:
        inputs.grad = None
        module.zero_grad(set_to_none=True)
        out = module(inputs, lengths) if isinstance(module, Stack) else module(inputs)
        total = (out[0] if isinstance(out, tuple) else out).sum()
        with torch.autocast(DEVICE, enabled=False):
            total.backward()

    return step


def in_inference(function: Callable[[], Any]) -> Callable[[], Any]:
    return torch.inference_mode()(function)


def compare(benchmark: str, calls: dict[str, Callable[[], Any]], repeats: int, **facts: Any) -> None:
    """Time the calls in turn and emit a row; ratios are each other median over the first one's."""
    summary = {name: spread(seconds) for name, seconds in side_by_side(calls, repeats=repeats).items()}
    first, *others = summary
    ratios = {name: summary[name]["median"] / summary[first]["median"] for name in others}
    emit(benchmark=f"stacks {benchmark}", **FACTS, **facts, seconds=summary, ratio=ratios)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
