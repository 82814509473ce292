"""LibriSpeech (OpenSLR 12, 960 hours of read books) and Mini LibriSpeech (OpenSLR 31, 5 hours of it).

`data.root` is the unpacked folder `LibriSpeech`, or the one that holds it. The splits are its parts, by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr.audio.header import AudioError
from asr.audio.io import audio_info
from asr.config.schema import Data
from asr.data.download import download, is_unpacked, unpack
from asr.data.ledger import Ledger, Reason
from asr.data.progress import progress_bar
from asr.errors import DataError
from asr.types import Drop, Utterance
from data_prep import check_splits, no_data

VERSION = 1
URL = "https://www.openslr.org/resources"
MIRRORS = (
    "https://us.openslr.org/resources",
    "https://openslr.elda.org/resources",
    "https://openslr.trmal.net/resources",
    "https://openslr.magicdatatech.com/resources",
)
# OpenSLR 12: sha256, as torchaudio has them. OpenSLR 31: md5, from its md5sum.txt.
SHA256 = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
MD5 = {
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
}
PARTS = (*SHA256, *MD5)
MEGABYTES = {  # of the archives, as OpenSLR states them
    "train-clean-100": 6300,
    "train-clean-360": 23000,
    "train-other-500": 30000,
    "dev-clean": 337,
    "dev-other": 314,
    "test-clean": 346,
    "test-other": 328,
    "train-clean-5": 332,
    "dev-clean-2": 126,
}

_LINE = re.compile(rb"(?P<id>\d+-\d+-\d+)(?: +(?P<text>.*))?")


def splits(data: Data, names: Sequence[str], work: Path, ledger: Ledger) -> dict[str, list[Utterance]]:
    """The utterances of the parts in `names`; see `data_prep`."""
    check_splits(names, PARTS, "librispeech")
    folders = _locate(data, names, work)
    chapters = {name: sorted({file.parent for file in _files(folder)}) for name, folder in folders.items()}
    found: dict[str, list[Utterance]] = {name: [] for name in names}
    with progress_bar("librispeech: chapters", sum(map(len, chapters.values()))) as progress:
        for name, paths in chapters.items():
            for path in paths:
                found[name] += _chapter(path, name, ledger)
                progress(1)
    return found


def _locate(data: Data, names: Sequence[str], work: Path) -> dict[str, Path]:
    """The folder of each part."""
    if data.download and data.root is None:
        for name in names:
            archive = work / f"{name}.tar.gz"
            if not is_unpacked(archive, work):
                resource = f"{12 if name in SHA256 else 31}/{archive.name}"
                mirrors = [f"{mirror}/{resource}" for mirror in MIRRORS]
                download(f"{URL}/{resource}", archive, sha256=SHA256.get(name), md5=MD5.get(name), mirrors=mirrors)
                unpack(archive, work)
    folders, missing = {}, []
    for name in names:
        if data.root:
            candidates = [data.root / name, data.root / "LibriSpeech" / name]
        else:
            candidates = [work / "LibriSpeech" / name] if is_unpacked(work / f"{name}.tar.gz", work) else []
        folder = next((candidate for candidate in candidates if any(_files(candidate))), None)
        if folder is None:
            missing.append(name)
        else:
            folders[name] = folder.absolute()
    if missing:
        gigabytes = sum(MEGABYTES[name] for name in missing) / 1000
        raise no_data(
            "librispeech",
            data,
            f"LibriSpeech/PART/SPEAKER/CHAPTER/*.flac and *.trans.txt; PART: {', '.join(missing)}",
            f"{', '.join(missing)} ({gigabytes:.1f} GB) from {URL}",
        )
    return folders


def _files(folder: Path) -> Iterator[Path]:
    """The audio and the transcripts of a part."""
    return (file for file in folder.rglob("*") if file.suffix == ".flac" or file.name.endswith(".trans.txt"))


def _chapter(folder: Path, part: str, ledger: Ledger) -> list[Utterance]:
    """Read a folder's audio and its `SPEAKER-CHAPTER.trans.txt`, lines such as `84-121123-0000 GO DO YOU HEAR`."""

    def drop(name: str, reason: str, detail: str) -> None:
        ledger.add(Drop(name, reason, detail, part))

    audio = {file.stem: file for file in sorted(folder.glob("*.flac"))}
    transcripts = sorted(folder.glob("*.trans.txt"))
    utterances = []
    for path in transcripts:
        for number, line in enumerate(_lines(path), 1):
            match = _LINE.fullmatch(line.rstrip())
            if not match:
                raise DataError(
                    f"{path}:{number}: got {line[:60]!r}, expected a name such as 84-121123-0000 and its text"
                )
            name, text = match["id"].decode(), match["text"] or b""
            file = audio.pop(name, None)
            try:
                if file is None:
                    drop(name, Reason.MISSING, f"{path}:{number} names it; {name}.flac is not beside it")
                elif not text:
                    drop(name, Reason.EMPTY_TEXT, f"{path}:{number} has no text")
                else:
                    seconds = audio_info(file).seconds
                    utterances.append(Utterance(name, str(file), text.decode(), seconds, name.partition("-")[0]))
            except AudioError as error:
                drop(name, error.reason, str(error))
            except UnicodeDecodeError as error:
                drop(name, Reason.NOT_UTF8, f"{path}:{number}: {error}")
    searched = ", ".join(path.name for path in transcripts) or "*.trans.txt, of which there is none,"
    for name, file in audio.items():
        drop(name, Reason.NO_TRANSCRIPT, f"{file}: no line of {searched} names it")
    return utterances


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
