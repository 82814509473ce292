"""Temporal order: `python recipes/sequence/temporal_order/train.py stack=sgd_clip_omega [scale=full]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
