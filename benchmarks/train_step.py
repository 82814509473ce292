"""Time one training step of Deep Speech 2 (5 x 800 BiGRU): ours against one written as most people would.

    python benchmarks/train_step.py [--precision bf16] [--repeats 10] [model=PRESET ...]

Forward, CTC, backward and optimiser on fixed made-up batches; the two take turns. One JSON line a batch shape:
audio-seconds per second of each, and the ratio of medians (above 1: ours is faster).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from common import emit, side_by_side, spread
from plain_deep_speech import PlainDeepSpeech
from torch import Tensor

from asr import model
from asr.config import load
from asr.heads.ctc import ctc_loss
from asr.train.memory import keep_freed_memory

SHAPES = ((8, 4.0), (16, 8.0))  # items, seconds
NUM_TOKENS = 29
RATE_HZ = 16000
TOKENS_PER_SECOND = 14  # English speech, Deep Speech 2, section 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Path(__file__).parents[1] / "recipes" / "librispeech"
    config = load(recipe, ["model=ds2_5x800", "data=embedded", *options.overrides])

    torch.manual_seed(0)
    ours = model.build(config, NUM_TOKENS).to(device)
    plain = PlainDeepSpeech(
        num_tokens=NUM_TOKENS, num_layers=config.stack.num_layers, hidden_size=config.stack.hidden_size
    ).to(device)
    settings = {"lr": 1e-4, "momentum": 0.99, "nesterov": True}
    optimizers = [torch.optim.SGD(m.parameters(), **settings) for m in (ours, plain)]

    for items, seconds in SHAPES:
        batch = made_up_batch(items, seconds, device)

        def step(which: int, batch: tuple[Tensor, ...] = batch) -> None:
            audio, lengths, targets, target_lengths, seeds = batch
            with torch.autocast(device, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                if which == 0:
                    log_probs, frames = ours(audio, lengths, seeds)
                    loss = ctc_loss(log_probs, frames, targets, target_lengths).sum() / target_lengths.sum()
                else:
                    loss = plain.loss(audio, lengths, targets, target_lengths)
            optimizers[which].zero_grad()
            loss.backward()
            optimizers[which].step()

        times = side_by_side({"ours": partial(step, 0), "plain": partial(step, 1)}, repeats=options.repeats)
        summary = {name: spread(values) for name, values in times.items()}
        audio_seconds = float(batch[1].sum()) / RATE_HZ
        emit(
            benchmark="train_step",
            batch=f"{items} x {seconds:g} s",
            precision=options.precision,
            parameters={"ours": _count(ours), "plain": _count(plain)},
            audio_seconds_per_second={name: audio_seconds / s["median"] for name, s in summary.items()},
            seconds=summary,
            ratio=summary["plain"]["median"] / summary["ours"]["median"],
        )


def made_up_batch(items: int, seconds: float, device: str) -> tuple[Tensor, ...]:
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
