"""Elman's simulations: `python recipes/sequence/elman/train.py stack=letters [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
