"""Train on the language of tones, as a process of its own: `python -m tests.support.train_tones KEY=VALUE ...`."""

import sys
from pathlib import Path

from asr.config import load
from asr.messages import user_errors_exit
from asr.train.run import train
from tests.support.tones import prepare

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "recipe=tones",
    "data.corpus=tones",
    "data.batch_seconds=8",
    "data.num_workers=0",
    "text.tokenizer=characters",
    "features.num_mels=24",
    "front_end.layers=[{channels: 4, time_kernel: 5, time_stride: 2, frequency_kernel: 5, frequency_stride: 2}]",
    "stack.num_layers=1",
    "stack.hidden_size=16",
    "stack.dropout=0.1",
    "augment.time_mask_frames=3",
    "augment.frequency_mask_bins=3",
    "optim.learning_rate=1e-2",
    "optim.warmup_steps=5",
    "optim.ema_decay=0.9",
    "trainer.precision=float32",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=2",
]


def main(overrides: list[str]) -> None:
    with user_errors_exit("train_tones"):
        train(load(ROOT / "recipes" / "an4", [*SETTINGS, *overrides]), prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
