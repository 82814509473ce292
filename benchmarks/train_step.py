"""Time one training step of Deep Speech 2 (5 x 800 BiGRU): ours against one written as most people would.

    python benchmarks/train_step.py [--precision bf16] [--repeats 10] [--deterministic] [model=PRESET ...]

Forward, CTC, backward and optimiser on fixed made-up batches; the two take turns. One JSON line a batch shape:
audio-seconds per second of each, and the ratio of medians (above 1: ours is faster). --deterministic instead compares
ours with itself in torch's deterministic mode.

On a GPU the batches are larger, a temporal convolutional network of about as many parameters comes after, by itself,
unless overrides name a model, and each line also says where the GPU's time goes: the kinds of its kernels, the three
largest that are no product, how long it idles, and what part of the peak of matrix products, measured in the same run,
the model's own multiply-adds make up (three times those of the forward pass, for the real audio, without its padding).
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import emit, side_by_side, spread
from gpu_time import kernels_of, peak_operations_per_second, summary
from plain_deep_speech import PlainDeepSpeech
from torch import Tensor

from asr import model
from asr.config import load
from asr.config.schema import Config
from asr.heads.ctc import ctc_loss
from asr.model import SpeechModel
from asr.stacks._multiply_adds import multiply_adds
from asr.train.memory import keep_freed_memory

SHAPES = {"cpu": ((8, 4.0), (16, 8.0)), "cuda": ((32, 8.0), (64, 15.0))}  # items, seconds
DEEP_SPEECH = "model=ds2_5x800"
TCN = (
    DEEP_SPEECH, "stack=tcn", "stack.num_layers=5", "stack.hidden_size=800", "stack.batch_norm=true",
)  # fmt: skip
NUM_TOKENS = 29
RATE_HZ = 16000
TOKENS_PER_SECOND = 14  # English speech, Deep Speech 2, section 1.6
COUNTED_SECONDS = 4  # of audio, over which multiply-adds are counted
PROFILED_STEPS = 2
PASSES = 3  # backward costs twice the forward pass

Batch = tuple[Tensor, ...]
Step = Callable[[Batch], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--deterministic", action="store_true", help="what deterministic mode costs, in place of the rest"
    )
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # likewise
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic, before a GPU is used
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = options.precision == "bf16"
    peak = peak_operations_per_second() if device == "cuda" else 0.0
    named = [options.overrides] if options.overrides or device == "cpu" else [(DEEP_SPEECH,), TCN]
    for overrides in named:
        compare(overrides, device, bf16=bf16, repeats=options.repeats, deterministic=options.deterministic, peak=peak)


def compare(
    overrides: Sequence[str], device: str, *, bf16: bool, repeats: int, deterministic: bool, peak: float
) -> None:
    """Emit the rows of one model."""
    recipe = Path(__file__).parents[1] / "recipes" / "librispeech"
    config = load(recipe, [DEEP_SPEECH, "data=embedded", *overrides])
    torch.manual_seed(0)
    ours = model.build(config, NUM_TOKENS)
    samples = COUNTED_SECONDS * RATE_HZ
    per_second = multiply_adds(ours.eval(), torch.zeros(1, samples), torch.tensor([samples])) / COUNTED_SECONDS
    ours.to(device).train()
    step = ours_step(ours, device, bf16)
    steps: dict[str, Step] = {"ours": step}
    modules: dict[str, torch.nn.Module] = {"ours": ours}
    if deterministic:
        steps["deterministic"] = partial(deterministically, step)
    elif config.stack.name == "gru":
        modules["plain"] = plain = plain_model(config).to(device)
        steps["plain"] = plain_step(plain, device, bf16)

    for items, seconds in SHAPES[device]:
        what = {
            "model": " ".join(overrides) or DEEP_SPEECH,
            "batch": f"{items} x {seconds:g} s",
            "precision": "bf16" if bf16 else "float32",
        }
        try:
            batch = made_up_batch(items, seconds, device)
            audio_seconds = float(batch[1].sum()) / RATE_HZ
            runs, failed = runnable({name: partial(function, batch) for name, function in steps.items()})
            times = side_by_side(runs, repeats=repeats)
            medians = {name: spread(values) for name, values in times.items()}
            first, *others = (values["median"] for values in medians.values())
            emit(
                benchmark="train_step_deterministic" if deterministic else "train_step",
                **what,
                parameters={name: _count(module) for name, module in modules.items()},
                audio_seconds_per_second={name: audio_seconds / s["median"] for name, s in medians.items()},
                seconds=medians,
                **({"ratio": others[0] / first} if others else {}),
                **({"failed": failed} if failed else {}),
            )
            if device == "cuda" and not deterministic:
                operations = 2 * PASSES * per_second * audio_seconds
                emit(
                    benchmark="train_step_gpu",
                    **what,
                    audio_hours_per_hour=audio_seconds / first,
                    multiply_adds_per_audio_second=per_second,
                    operations_per_second=operations / first,
                    peak_operations_per_second=peak,
                    utilisation=operations / first / peak,
                    peak_gigabytes=torch.cuda.max_memory_allocated() / 1e9,
                    ctc_seconds=ctc_seconds(ours, batch),
                    **summary(kernels_of(runs["ours"], PROFILED_STEPS), steps=PROFILED_STEPS, step_seconds=first),
                )
        except RuntimeError as error:  # of which out of memory is one: the next batch or model may do
            if device == "cpu":
                raise
            emit(benchmark="train_step", **what, failed={"ours": str(error).splitlines()[0]})


def ours_step(ours: SpeechModel, device: str, bf16: bool) -> Step:
    """The toolkit's."""
    # On a GPU as in training; on a CPU both have torch's default.
    optimizer = optimizer_of(ours, fused=True if device == "cuda" else None)

    def loss(audio: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, seeds: Tensor) -> Tensor:
        log_probs, frames = ours(audio, lengths, seeds)
        return ctc_loss(log_probs, frames, targets, target_lengths).sum() / target_lengths.sum()

    return partial(take_step, loss, optimizer, device, bf16)


def plain_step(plain: PlainDeepSpeech, device: str, bf16: bool) -> Step:
    """What it is compared with."""

    def loss(audio: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, seeds: Tensor) -> Tensor:
        return plain.loss(audio, lengths, targets, target_lengths)

    return partial(take_step, loss, optimizer_of(plain), device, bf16)


def take_step(
    loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, device: str, bf16: bool, batch: Batch
) -> None:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        value = loss(*batch)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def deterministically(step: Step, batch: Batch) -> None:
    """Take a step in torch's deterministic mode."""
    torch.use_deterministic_algorithms(True)
    try:
        step(batch)
    finally:
        torch.use_deterministic_algorithms(False)


def plain_model(config: Config) -> PlainDeepSpeech:
    stack: Any = config.stack
    return PlainDeepSpeech(num_tokens=NUM_TOKENS, num_layers=stack.num_layers, hidden_size=stack.hidden_size)


def optimizer_of(module: torch.nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.99, nesterov=True, fused=fused)


def runnable(steps: dict[str, Callable[[], None]]) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Those that run here, and what the others, of which ours is none, say."""
    runs, failed = {}, {}
    for name, step in steps.items():
        try:
            step()
        except RuntimeError as error:
            if name == "ours":
                raise
            failed[name] = str(error).splitlines()[0]
        else:
            runs[name] = step
    return runs, failed


def ctc_seconds(ours: SpeechModel, batch: Batch) -> dict[str, float]:
    """Median of loss and gradient on made-up log-probabilities of the batch's shape: ours, and torch's."""
    audio, lengths, targets, target_lengths, _ = batch
    frames = ours.frame_count(audio.shape[1])
    log_probs = torch.randn(len(audio), frames, NUM_TOKENS, device=audio.device).log_softmax(-1).requires_grad_()
    real = (lengths * frames) // audio.shape[1]

    def gradient(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(log_probs, real, targets, target_lengths).sum(), log_probs)

    def torchs(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        return F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, reduction="none")

    times = side_by_side({"ours": partial(gradient, ctc_loss), "torch": partial(gradient, torchs)}, repeats=5)
    return {name: spread(values)["median"] for name, values in times.items()}


def made_up_batch(items: int, seconds: float, device: str) -> Batch:
    """Noise of 80 to 100 % of `seconds`, with random tokens: audio, lengths, targets, target lengths, seeds."""
    samples, tokens = int(seconds * RATE_HZ), int(seconds * TOKENS_PER_SECOND)
    lengths = (samples * torch.linspace(1.0, 0.8, items)).long()
    batch = (
        0.1 * torch.randn(items, samples),
        lengths,
        torch.randint(1, NUM_TOKENS, (items, tokens)),
        torch.full((items,), tokens),
        torch.arange(items),
    )
    return tuple(tensor.to(device) for tensor in batch)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
