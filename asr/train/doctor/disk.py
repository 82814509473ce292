"""Whether the run folder's disk has room for the checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from asr.config import Config
from asr.errors import AsrError
from asr.train.doctor.report import Line, Verdict, gibibytes

BYTES_PER_WEIGHT = 4  # float32, whatever the steps are computed in


def checkpoint_bytes(config: Config, num_parameters: int) -> int:
    """Size of one checkpoint: the weights for use, the optimiser's moments, and raw weights and average if one is kept.

    The rest (configuration, tokenizer, batch norm's statistics) is small beside them.
    """
    optim = config.optim
    moments = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    return BYTES_PER_WEIGHT * num_parameters * (1 + moments + (2 if optim.ema_decay else 0))


def check_disk(config: Config, run: Path, num_parameters: int) -> Line:
    """Compare the free space with what the checkpoints take that are there at the same time."""
    kept = config.trainer.keep_last + config.trainer.keep_best + 1  # and the one that is being written
    needed = kept * checkpoint_bytes(config, num_parameters)
    folder = next(parent for parent in [run.absolute(), *run.absolute().parents] if parent.exists())
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise AsrError(f"{folder}: {error.strerror}; choose another run_dir") from error
    message = f"{gibibytes(free)} free for {run}; {kept} checkpoints take {gibibytes(needed)}"
    figures = {"free_bytes": float(free), "needed_bytes": float(needed)}
    fix = "run_dir=FOLDER on another disk, trainer.keep_last=1, or make room"
    if free < needed:
        return Line("disk", Verdict.ERROR, message, fix, figures=figures)
    if free < 2 * needed:  # metrics, TensorBoard's files and test results come on top
        return Line("disk", Verdict.WARNING, f"{message}, more than half of it", fix, figures=figures)
    return Line("disk", Verdict.OK, message, figures=figures)
