"""Sequential and permuted MNIST: `python recipes/sequence/pixel_mnist/train.py stack=tcn [scale=full]`."""

from asr.sequence.command import main

if __name__ == "__main__":
    main(__file__)
