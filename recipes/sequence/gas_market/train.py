"""A gas market: `python recipes/sequence/gas_market/train.py [key=value ...]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
