"""Checks of the data: shards, their audio and rates, utterances that CTC cannot use, characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from asr.audio.header import AudioError
from asr.audio.io import audio_info
from asr.config import Config
from asr.data.corpus import Corpus
from asr.data.ledger import Reason
from asr.data.shard_plan import made_from
from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer, UnknownCharacter, unknown_characters
from asr.train.doctor.report import Line, Verdict, lost
from asr.train.left_out import drop_untrainable
from asr.types import Drop

DECODED = 1000  # utterances of each split, spread over it, unless every one is asked for
PROBED_SOURCES = 200  # recordings of each split whose headers are read
RARE = 5  # a character that stands in training less often is not learnt

_FIXES = {
    Reason.INFEASIBLE: "fewer tokens (text.tokenizer=unigram) or more frames (a smaller front_end time_stride, no "
    "augment.speeds above 1); or mend the transcripts",
    Reason.TOO_LONG: "data.max_seconds=SECONDS takes longer ones, if memory allows; else cut them",
    Reason.TOO_SHORT: "data.min_seconds=SECONDS takes shorter ones",
    Reason.EMPTY_TEXT: "transcribe them or leave them out of the corpus",
    Reason.UNKNOWN_CHARACTERS: "a run that is resumed keeps its tokens: spell these out in the transcripts, or begin "
    "another run",
}


def open_shards(
    config: Config, folders: Mapping[str, Path | str], opened: Mapping[str, ShardReader] | None = None
) -> tuple[dict[str, ShardReader], Line]:
    """Read every index of every split, each compared with its tar; gives the splits that are whole.

    Args:
        config: names the splits.
        folders: where each is.
        opened: those that have been read already.
    """
    data = config.data
    readers: dict[str, ShardReader] = dict(opened or {})
    faults: list[str] = []
    for name in dict.fromkeys([*data.train, *data.validation, *data.test]):
        if name in readers:
            continue
        try:
            readers[name] = ShardReader(folders[name])
        except DataError as error:
            faults.append(str(error))
    if faults:
        fix = f"remove the folder that is named; `python recipes/{config.recipe or 'RECIPE'}/train.py` makes it anew"
        return readers, Line("shards", Verdict.ERROR, f"{len(faults)} splits cannot be read", fix, tuple(faults))
    words = [
        f"{name} {len(reader)} utterances, {int(reader.num_samples.sum()) / reader.sample_rate_hz / 3600:.2f} h"
        for name, reader in readers.items()
    ]
    return readers, Line("shards", Verdict.OK, "; ".join(words))


def held_out_of(config: Config, readers: Mapping[str, ShardReader]) -> dict[str, ShardReader]:
    """The splits that training is judged on."""
    names = dict.fromkeys([*config.data.validation, *config.data.test])
    return {name: readers[name] for name in names if name in readers}


def check_audio(readers: Mapping[str, ShardReader], *, every: bool) -> Line:
    """Decode utterances of each split, all of them or `DECODED` spread over it."""
    faults: list[str] = []
    decoded = 0
    for reader in readers.values():
        corpus = Corpus([reader], reader.sample_rate_hz)
        count = len(reader) if every else min(DECODED, len(reader))
        for index in np.linspace(0, len(reader) - 1, count).astype(int):
            audio = corpus.audio_or_drop(int(index))
            decoded += 1
            if isinstance(audio, Drop):
                faults.append(f"{audio.source} {audio.id}: {audio.reason}: {audio.detail}")
    total = sum(map(len, readers.values()))
    rest = "" if decoded == total else f" of {total}; --all-audio decodes the others too"
    if not faults:
        return Line("audio", Verdict.OK, f"{decoded} utterances decoded{rest}")
    fix = "copy the shards again, or remove the folder that is named and prepare the data again"
    message = f"{len(faults)} of {decoded} utterances decoded are damaged{rest and f' ({total} in all)'}"
    return Line("audio", lost(len(faults), decoded), message, fix, tuple(faults))


def check_rates(config: Config, readers: Mapping[str, ShardReader]) -> Line:
    """Compare the rates of shards, and of the recordings that they were made from, with the model's."""
    wanted = config.data.sample_rate_hz
    wrong = [reader for reader in readers.values() if reader.sample_rate_hz != wanted]
    if wrong:
        fix = f"prepare the data again at data.sample_rate_hz={wanted}, or set data.sample_rate_hz to the shards' rate"
        details = tuple(f"{reader.location}: {reader.sample_rate_hz} Hz" for reader in wrong)
        return Line("rates", Verdict.ERROR, f"shards of another rate than {wanted} Hz", fix, details)
    sources: Counter[tuple[str, int]] = Counter()
    for name, reader in readers.items():
        sources.update((name, rate) for rate in _source_rates(reader.folder))
    if not sources:
        return Line("rates", Verdict.OK, f"shards at {wanted} Hz; the recordings that they were made from are not here")
    counted = [f"{name}: {count} at {rate} Hz" for (name, rate), count in sorted(sources.items())]
    if low := [rate for _, rate in sources if rate < wanted]:
        message = f"recordings of a lower rate than {wanted} Hz: nothing stands in the upper part of their spectrum"
        fix = f"data.sample_rate_hz={min(low)} if these are what the model will hear; else leave them out"
        return Line("rates", Verdict.WARNING, message, fix, tuple(counted))
    return Line("rates", Verdict.OK, f"shards at {wanted} Hz; recordings looked at: {'; '.join(counted)}")


def _source_rates(folder: Path | None) -> list[int]:
    """Rates of some of the recordings that shards were made from, as far as these are at hand."""
    utterances = list(made_from(folder)[1].values())
    rates = []
    for index in np.linspace(0, len(utterances) - 1, min(PROBED_SOURCES, len(utterances))).astype(int):
        try:
            rates.append(audio_info(Path(utterances[index].audio)).sample_rate_hz)
        except AudioError:  # moved away since, or what the shards' ledger names
            continue
    return rates


def check_utterances(config: Config, corpus: Corpus, tokenizer: Tokenizer, model: SpeechModel) -> Line:
    """Take out of `corpus` what training would leave out, and count it by reason."""
    total = len(corpus)
    drops = drop_untrainable(config, corpus, tokenizer, model)
    counts = Counter(Reason(drop.reason) for drop in drops)
    if not drops:
        milliseconds = 1000 * model.frame_seconds
        return Line("utterances", Verdict.OK, f"all {total} can be trained on with frames of {milliseconds:.0f} ms")
    words = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    fix = "; ".join(f"{reason}: {_FIXES[reason]}" for reason, _ in counts.most_common())
    return Line(
        "utterances",
        lost(len(drops), total),
        f"{len(drops)} of {total} cannot be trained on: {words}",
        fix,
        tuple(f"{drop.source} {drop.id}: {drop.reason}: {drop.detail}" for drop in drops),
        {reason.value: count for reason, count in counts.items()},
    )


def check_characters(tokenizer: Tokenizer, readers: Mapping[str, ShardReader]) -> Line:
    """Look in the texts of these splits for characters that the tokens cannot spell."""
    places = [(f"{name}\0{id_}", text) for name, r in readers.items() for id_, text in zip(r.ids, r.texts, strict=True)]
    unknown = unknown_characters(tokenizer, places)
    if not unknown:
        names = ", ".join(readers)
        return Line("characters", Verdict.OK, f"{names}: no character that the {tokenizer.num_tokens} tokens lack")
    return Line(
        "characters",
        Verdict.WARNING,
        f"{len(unknown)} characters that the training texts lack and the model can never write",
        "spell them out in the transcripts; text.punctuation=remove, text.case=lower and text.language fold many",
        tuple(_located(readers, unknown)),
        {"unknown_characters": len(unknown), "occurrences": sum(one.count for one in unknown)},
    )


def check_rare_characters(tokenizer: Tokenizer, readers: Mapping[str, ShardReader]) -> Line:
    """Look in the training texts for characters that stand there a few times only: often slips of the pen."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name, reader in readers.items():
        for id_, text in zip(reader.ids, reader.texts, strict=True):
            for character in tokenizer.normalize(text):
                counts[character] += 1
                first.setdefault(character, f"{name}\0{id_}")
    rare = [UnknownCharacter(c, counts[c], first[c]) for c in sorted(counts, key=lambda c: (counts[c], c))]
    rare = [one for one in rare if one.count < RARE]
    if not rare:
        return Line("rare", Verdict.OK, f"each of {len(counts)} characters stands {RARE} times or more in training")
    return Line(
        "rare",
        Verdict.WARNING,
        f"{len(rare)} of {len(counts)} characters stand in training less than {RARE} times, too rare to be learnt",
        "mend the transcripts, if these are slips; text.tokenizer=unigram with more data, if they are not",
        tuple(_located(readers, rare)),
        {"rare_characters": len(rare)},
    )


def _located(readers: Mapping[str, ShardReader], found: Sequence[UnknownCharacter]) -> list[str]:
    """One line a character, with the line that has it first of what the shards were made from, where that is here."""
    lines: dict[str, dict[str, str]] = {}
    rows = []
    for one in found:
        name, _, id_ = one.where.partition("\0")
        if name not in lines:
            file, utterances = made_from(readers[name].folder)
            lines[name] = {utterance.id: f"{file}:{line}" for line, utterance in utterances.items()}
        place = f"{readers[name].location}/{lines[name][id_]} ({id_})" if id_ in lines[name] else f"{name} {id_}"
        rows.append(str(UnknownCharacter(one.character, one.count, place)))
    return rows
