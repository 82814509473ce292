"""Character language model: `python recipes/sequence/char_lm/train.py stack=gru data.root=FOLDER`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
