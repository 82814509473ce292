"""Manifests: JSON lines that say where audio is and what was said in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asr.atomic import atomic_write
from asr.errors import DataError
from asr.types import Utterance


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest: one JSON object a line with "audio", "text" and "seconds", maybe "id" and "speaker".

    An id that is not given is the audio's path as it stands there, without its suffix. A relative path of audio is
    taken from the manifest's folder and comes back absolute. Other keys are the user's own and are ignored.

    Raises:
        DataError: the file is missing, not UTF-8, or a line is wrong; names the file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a manifest (JSON lines)") from error
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        utterance = _utterance(line, path.parent, f"{path}:{number}")
        first = first_line.setdefault(utterance.id, number)
        if first != number:
            raise DataError(
                f"{path}:{number}: got the id {utterance.id!r}, which line {first} has; expected each id once"
            )
        utterances.append(utterance)
    return utterances


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest in one step: it is there whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with atomic_write(path) as handle:
        for utterance in utterances:
            handle.write(json.dumps(asdict(utterance), ensure_ascii=False).encode() + b"\n")


def _utterance(line: bytes, folder: Path, where: str) -> Utterance:
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: got byte {line[error.start]:#04x}, expected UTF-8; convert the file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}; got {line[:60]!r}, expected one object a line") from error
    if not isinstance(entry, dict):
        raise DataError(f"{where}: got {line[:60]!r}, expected an object such as {_EXAMPLE}")
    audio = _field(entry, "audio", str, where)
    seconds = _field(entry, "seconds", float, where)
    if not Path(audio).name or not 0 <= seconds < float("inf"):
        raise DataError(f"{where}: got audio {audio!r} and seconds {seconds}, expected a path and a length >= 0")
    return Utterance(
        id=_field(entry, "id", str, where, default=str(Path(audio).with_suffix(""))),
        audio=str((folder / audio).absolute()),
        text=_field(entry, "text", str, where),
        seconds=seconds,
        speaker=_field(entry, "speaker", str, where, default=""),
    )


def _field(entry: dict[str, Any], key: str, kind: type[Any], where: str, default: Any = None) -> Any:
    value: Any = entry.get(key, default)
    if value is None:
        raise DataError(f"{where}: got keys {', '.join(sorted(entry))}; {key!r} is missing, expected {_EXAMPLE}")
    if kind is float and type(value) is int:  # JSON writes 3.0 as 3 too
        value = float(str(value))  # infinity where the number itself would overflow
    if type(value) is not kind:
        raise DataError(f"{where}: {key!r}: got {value!r}, expected a {_WORDS[kind]}")
    if kind is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {key!r}: got {value!r}, half a surrogate pair; expected Unicode characters")
    if kind is str and "\0" in value:
        raise DataError(f"{where}: {key!r}: got {value!r}, expected text without NUL")
    return value


_EXAMPLE = '{"audio": "a.flac", "text": "hello", "seconds": 1.5}'
_WORDS = {str: "string", float: "number"}
