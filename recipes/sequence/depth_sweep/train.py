"""Depth with and without shortcuts: `python recipes/sequence/depth_sweep/train.py stack=residual_50`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
