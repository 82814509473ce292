"""CMU AN4: spelled words, digits and commands, 0.8 hours; 948 utterances to train on, 130 to test on.

`data.root` is the unpacked `an4_sphere.tar.gz` (etc/an4_train.transcription, wav/an4_clstk/...), or a folder with a
manifest.jsonl whose audio paths keep CMU's folder names.

Splits: `train` and `validation` (seven of the 74 training speakers, chosen by a hash of their names), `train_all`
(both), and `test` (CMU's test set, whose speakers are in no other split).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from asr.audio.header import AudioError
from asr.audio.io import audio_info
from asr.config.schema import Data
from asr.data.download import download, is_unpacked, unpack
from asr.data.ledger import Ledger, Reason
from asr.data.manifest import read_manifest
from asr.errors import DataError
from asr.types import Drop, Utterance
from data_prep import check_splits, no_data

VERSION = 1
SPLITS = ("train", "validation", "train_all", "test")
NUM_VALIDATION_SPEAKERS = 7  # of 74: about a tenth of the utterances
URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
MIRRORS = ("https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz",)
# CMU publishes no checksum. This is what users of the mirror (NVIDIA's, for its NeMo tutorials) pin.
SHA256 = "a0525579493735d32b60fb6fa5975dd0eaacde087b0a4eeb7f13b7ef33077b12"
EXPECTED = "etc/an4_train.transcription and wav/ (an4_sphere.tar.gz unpacked), or with manifest.jsonl"
TEST_FOLDER = "an4test_clstk"

_LINE = re.compile(r"(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()\s]+)\)\s*")


def splits(data: Data, names: Sequence[str], work: Path, ledger: Ledger) -> dict[str, list[Utterance]]:
    """The utterances of the splits in `names`; see `data_prep`."""
    check_splits(names, SPLITS, "an4")
    root = _locate(data, work)
    if (root / "manifest.jsonl").is_file():
        training, test = _from_manifest(root / "manifest.jsonl")
    else:
        training = _from_transcription(root, "train", ledger)
        test = _from_transcription(root, "test", ledger)
    held_out = _held_out_speakers({utterance.speaker for utterance in training})
    found = {
        "train": [utterance for utterance in training if utterance.speaker not in held_out],
        "validation": [utterance for utterance in training if utterance.speaker in held_out],
        "train_all": training,
        "test": test,
    }
    return {name: found[name] for name in names}


def _locate(data: Data, work: Path) -> Path:
    """The folder with etc/ and wav/, or with manifest.jsonl."""
    if data.root:
        for folder in (data.root, data.root / "an4"):
            if (folder / "manifest.jsonl").is_file() or (folder / "etc" / "an4_train.transcription").is_file():
                return folder
    else:
        archive = work / "an4_sphere.tar.gz"
        if data.download and not is_unpacked(archive, work):
            download(URL, archive, sha256=SHA256, mirrors=MIRRORS)
            unpack(archive, work)
        if is_unpacked(archive, work):
            return work / "an4"
    raise no_data("an4", data, EXPECTED, f"64 MB from {URL}")


def _from_manifest(path: Path) -> tuple[list[Utterance], list[Utterance]]:
    training, test = [], []
    for one in read_manifest(path):
        name = Path(one.audio).stem
        utterance = Utterance(name, one.audio, one.text, one.seconds, one.speaker or _speaker(name))
        (test if TEST_FOLDER in Path(one.audio).parts else training).append(utterance)
    return training, test


def _from_transcription(root: Path, part: str, ledger: Ledger) -> list[Utterance]:
    """Read `etc/an4_PART.transcription`: lines such as `<s> YES </s> (an251-fash-b)`, with or without the marks."""
    path = root / "etc" / f"an4_{part}.transcription"
    audio = {file.stem: file for file in (root / "wav").rglob("*.*")}
    utterances = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; unpack the archive anew") from error
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise DataError(f"{path}:{number}: got {line!r}, expected words and then the utterance's name in brackets")
        name = match["id"]
        if name not in audio:
            ledger.add(Drop(name, Reason.MISSING, f"{path}:{number} names it; no such file in {root / 'wav'}", part))
            continue
        try:
            seconds = audio_info(audio[name]).seconds
        except AudioError as error:
            ledger.add(Drop(name, error.reason, str(error), part))
            continue
        utterances.append(Utterance(name, str(audio[name].absolute()), match["text"].strip(), seconds, _speaker(name)))
    return utterances


def _speaker(utterance_id: str) -> str:
    """`fash` of `an251-fash-b`."""
    return utterance_id.split("-")[1] if utterance_id.count("-") == 2 else utterance_id


def _held_out_speakers(speakers: set[str]) -> set[str]:
    """The validation speakers: the same ones on every machine, whatever order files come in."""
    ordered = sorted(speakers, key=lambda speaker: hashlib.sha256(speaker.encode()).hexdigest())
    return set(ordered[:NUM_VALIDATION_SPEAKERS])
