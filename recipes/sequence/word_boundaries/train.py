"""Word boundaries: `python recipes/sequence/word_boundaries/train.py stack=hm_lstm [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
