"""Frequency discrimination: `python recipes/sequence/frequency/train.py stack=NAME [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
