"""The key and the door: `python recipes/sequence/key_door/train.py stack=dlstm [scale=full] [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
