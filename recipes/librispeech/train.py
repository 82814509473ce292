"""Train a recogniser on LibriSpeech: `python recipes/librispeech/train.py [group=option] [section.key=value]`."""

from asr.train.run import main
from data_prep import prepare

if __name__ == "__main__":
    main(__file__, prepare)
