"""Every sequence task on every stack it is for: `python recipes/sequence/run_all.py [TASK...] [--scale full]`."""

from pathlib import Path

from asr.sequence.suite import main

if __name__ == "__main__":
    main(Path(__file__).parent)
