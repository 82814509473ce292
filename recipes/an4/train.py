"""Train a recogniser on CMU AN4: `python recipes/an4/train.py [group=option] [section.key=value]`."""

from asr.train.run import main
from data_prep import prepare

if __name__ == "__main__":
    main(__file__, prepare)
