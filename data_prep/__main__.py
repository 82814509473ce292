"""Prepare a corpus without training on it: `python -m data_prep an4 train test --root FOLDER --out data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from asr.config import Config
from asr.config.schema import Data
from asr.messages import user_errors_exit
from data_prep import prepare


def main() -> None:
    """Read the command line, make shards, print each split's folder."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("corpus", help="file in data_prep/")
    parser.add_argument("splits", nargs="+", help="of the corpus, by their names")
    parser.add_argument("--root", type=Path, help="folder with the raw corpus")
    parser.add_argument("--download", action="store_true", help="fetch the raw corpus from its public source")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for shards and downloads (data)")
    parser.add_argument("--sample-rate-hz", type=int, default=16_000, help="of the shards (16000)")
    options = parser.parse_args()
    data = Data(
        corpus=options.corpus,
        root=options.root,
        download=options.download,
        cache=options.out,
        train=tuple(options.splits),
        validation=(),
        test=(),
        sample_rate_hz=options.sample_rate_hz,
    )
    with user_errors_exit("data_prep"):
        for folder in prepare(Config(data=data)).values():
            print(folder)


if __name__ == "__main__":
    main()
