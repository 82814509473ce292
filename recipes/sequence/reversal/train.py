"""Sequence reversal: `python recipes/sequence/reversal/train.py stack=gru [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
