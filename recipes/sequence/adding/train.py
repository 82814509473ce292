"""The adding problem: `python recipes/sequence/adding/train.py stack=tcn [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
