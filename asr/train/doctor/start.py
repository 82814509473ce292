"""The checks that take seconds, made at the start of each training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from asr.config import Config
from asr.data.corpus import Corpus
from asr.errors import AsrError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer
from asr.train.doctor.copies import check_leaks
from asr.train.doctor.data import check_characters, held_out_of, open_shards
from asr.train.doctor.disk import check_disk
from asr.train.doctor.report import Line, Verdict, lost
from asr.train.ranks import global_rank


def warn_before_training(
    config: Config,
    folders: Mapping[str, Path | str],
    run: Path,
    tokenizer: Tokenizer,
    model: SpeechModel,
    train: Corpus,
    validation: Corpus,
) -> None:
    """Print what is not in order, on stderr, on one rank, and go on. `train` has lost what cannot be used by now."""
    if global_rank(config.trainer.devices):
        return
    names = [*config.data.train, *config.data.validation]
    opened = dict(zip(names, [*train.readers, *validation.readers], strict=True))
    readers, shards = open_shards(config, folders, opened)
    held_out = held_out_of(config, readers)
    total = sum(map(len, train.readers))
    lines = [
        shards,
        check_characters(tokenizer, held_out),
        check_leaks(train.readers, list(held_out.values()), every=False),
    ]
    left_out = total - len(train)
    if lost(left_out, total) is Verdict.ERROR:  # fewer are named as they are left out
        message = f"{left_out} of {total} cannot be trained on, which the run's ledger explains"
        lines.append(Line("utterances", Verdict.ERROR, message, "a setting, most likely: see the commonest reason"))
    try:
        lines.append(check_disk(config, run, sum(p.numel() for p in model.parameters())))
    except AsrError as error:
        lines.append(Line("disk", Verdict.ERROR, str(error), "choose another run_dir"))
    wrong = [line for line in lines if line.verdict != Verdict.OK]
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print(f"`asr doctor recipes/{config.recipe or 'RECIPE'} ...` looks closer", file=sys.stderr, flush=True)
