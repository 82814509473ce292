"""Synthetic phonemes with CTC: `python recipes/sequence/phonemes/train.py stack=deep_norm [scale=full]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
