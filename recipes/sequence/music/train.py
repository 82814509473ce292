"""Polyphonic music: `python recipes/sequence/music/train.py stack=tcn data.root=FOLDER`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
