"""`python -m asr.decode MODEL AUDIO...`: the same as `asr decode`."""

import sys

from asr.cli import run

if __name__ == "__main__":
    sys.exit(run("decode", sys.argv[1:]))
