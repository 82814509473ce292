"""Delayed recall: `python recipes/sequence/delayed_recall/train.py stack=dlstm [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
