"""Make shards to train on: `python data_prep/make_shards.py MANIFEST OUT`, MANIFEST as docs/data-format.md has it.

First a plan is written, OUT/plan.jsonl: which utterances go into which shard. Then each shard is made, by any number of
processes and in any order, with the same bytes. What was interrupted goes on where it stopped when the same command is
given again. Utterances that cannot be used stand in OUT/ledger.jsonl.

  data.train=[OUT]   trains on it, by its path (with a slash in it) or its URL
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asr.cores import num_cores
from asr.data.ledger import Ledger
from asr.data.manifest import read_manifest
from asr.data.progress import progress_bar
from asr.data.shard_plan import ShardPlan, read_plan, write_plan
from asr.data.shard_writer import UTTERANCES_PER_SHARD, finish, make_shards
from asr.data.shards import ShardReader
from asr.messages import positive, user_errors_exit
from data_prep._engines import make_with_ray, write_slurm_scripts

MAX_TASKS = 100  # of a SLURM array; sites allow 1000 by default, and fewer at a time


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, plan, make shards, say what there is."""
    parser = argparse.ArgumentParser(
        prog="make_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="JSON lines: audio, text, seconds")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder; holds the shards of this manifest only")
    parser.add_argument("--sample-rate-hz", type=positive, default=16_000, help="of the shards' audio (16000)")
    parser.add_argument(
        "--utterances-per-shard", type=positive, default=UTTERANCES_PER_SHARD, metavar="N",
        help=f"the last shard has the rest ({UTTERANCES_PER_SHARD})",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("local", "ray", "slurm"), default="local",
        help="processes of this machine; a Ray cluster; scripts for a SLURM array (local)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive, metavar="N",
        help="processes at a time, for slurm in each task (local: the CPUs there are; ray: the cluster's; slurm: 1)",
    )  # fmt: skip
    parser.add_argument("--tasks", type=positive, default=MAX_TASKS, help=f"of the SLURM array ({MAX_TASKS})")
    parser.add_argument("--submit", action="store_true", help="hand the SLURM scripts to sbatch")
    parser.add_argument(
        "--share", type=_share, metavar="I/N", help="make shards I, I + N, ... of OUT's plan only: a SLURM task's part"
    )
    parser.add_argument("--finish", action="store_true", help="write the index of OUT's shards only: the last step")
    options = parser.parse_args(argv)
    if options.submit and options.engine != "slurm":
        parser.error("--submit: expected --engine slurm with it")
    with user_errors_exit("make_shards"):
        _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.out.absolute()
    if options.finish:
        return _finish(folder)
    plan = read_plan(folder) if options.share else _plan(options, folder)
    first, step = options.share or (0, 1)
    numbers = range(first, plan.num_shards, step)
    if options.engine == "slurm":
        lines = write_slurm_scripts(
            options.manifest.absolute(), folder, num_shards=plan.num_shards, workers=options.workers or 1,
            tasks=options.tasks, submit=options.submit,
        )  # fmt: skip
        print(*lines, sep="\n")
        return None
    with progress_bar(f"shards of {folder.name}", plan.num_utterances if step == 1 else None) as progress:
        if options.engine == "ray":
            make_with_ray(folder, numbers, workers=options.workers, progress=progress)
        else:
            workers = options.workers or (1 if options.share else num_cores())
            make_shards(folder, numbers, workers=workers, progress=progress)
    if options.share:
        print(f"{folder}: {len(numbers)} of {plan.num_shards} shards are done")
        return None
    return _finish(folder)


def _plan(options: argparse.Namespace, folder: Path) -> ShardPlan:
    return write_plan(
        read_manifest(options.manifest),
        folder,
        sample_rate_hz=options.sample_rate_hz,
        utterances_per_shard=options.utterances_per_shard,
        source=str(options.manifest.absolute()),
    )


def _finish(folder: Path) -> None:
    ledger = Ledger(folder / "ledger.jsonl")
    finish(folder, ledger)
    written = ShardReader(folder)
    hours = int(written.num_samples.sum()) / written.sample_rate_hz / 3600
    print(f"{folder}: {len(written)} utterances, {hours:.2f} h at {written.sample_rate_hz} Hz in {_shards(folder)}")
    if len(ledger):
        print(f"make_shards: could not be used: {ledger.summary()}", file=sys.stderr)


def _shards(folder: Path) -> str:
    count = read_plan(folder).num_shards
    return "1 shard" if count == 1 else f"{count} shards"


def _share(text: str) -> tuple[int, int]:
    part, _, whole = text.partition("/")
    if not (part.isdecimal() and whole.isdecimal() and int(part) < int(whole)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with 0 <= I < N")
    return int(part), int(whole)


if __name__ == "__main__":
    sys.exit(main())
