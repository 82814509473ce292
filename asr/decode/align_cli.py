"""`asr align MODEL AUDIO TEXT`: where each word of a known text was said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asr.atomic import atomic_write
from asr.errors import AsrError, DataError

if TYPE_CHECKING:
    from asr.decode.align import Aligner, Alignment

FORMATS = {"textgrid": ".TextGrid", "ctm": ".ctm", "srt": ".srt", "json": ".json"}  # name: suffix of files
ONE_FILE = ("ctm", "json")  # formats that hold many utterances
MANIFEST_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """One audio file and what was said in it; `name` is what its output is called."""

    name: str
    audio: Path
    text: str
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Align and write; exit status 1 if anything could not be aligned."""
    parser = argparse.ArgumentParser(
        prog="asr align",
        usage="asr align [options] MODEL AUDIO TEXT\n       asr align [options] MODEL MANIFEST.jsonl",
        description="Say where each word of a known text was said.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("audio", metavar="AUDIO", type=Path, help="audio file, or a manifest (JSON lines)")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what is said: the words, or a .txt file")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: what --output ends in, else ctm; textgrid is Praat's"
    )
    parser.add_argument("--output", type=Path, help="file, or a folder for a manifest's textgrid and srt; else stdout")
    parser.add_argument("--tokens", action="store_true", help="the model's tokens too (ctm: instead of words)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)
    kind = options.format or _format_of(options.output)
    manifest = options.text is None
    if manifest and options.audio.suffix != MANIFEST_SUFFIX:
        parser.error(f"got {options.audio} and no TEXT, expected the text, or a manifest ({MANIFEST_SUFFIX})")
    in_folder = manifest and kind not in ONE_FILE
    if in_folder and options.output is None:
        parser.error(f"--output: got none, expected a folder: {kind} has a file for each utterance of a manifest")
    if options.tokens and kind == "srt":
        parser.error("--tokens: srt shows words only; take textgrid, ctm or json")

    items = _read_manifest(options.audio) if manifest else [_single(options.audio, options.text)]
    paths = _paths(items, options.output, FORMATS[kind]) if in_folder else {}
    from asr.checkpoint import load
    from asr.decode.align import Aligner

    aligner = Aligner(load(options.model), options.device)
    written: list[str] = []
    failures = 0
    for item, result in _align_all(aligner, items):
        if isinstance(result, AsrError):
            failures += 1
            print(f"asr align: {result}", file=sys.stderr, flush=True)
            continue
        text = _formatted(result, item, kind, options.tokens)
        if in_folder:
            _write(paths[item.name], text)
        elif options.output:
            written.append(text)
        else:
            print(text, end="", flush=True)
    if written:
        _write(options.output, "".join(written))
    if failures and manifest:
        print(f"asr align: {failures} of {len(items)} utterances could not be aligned", file=sys.stderr)
    return 1 if failures else 0


def _format_of(output: Path | None) -> str:
    suffix = output.suffix.lower() if output else ""
    known = {known.lower(): name for name, known in FORMATS.items()} | {".jsonl": "json"}
    return known.get(suffix, "ctm")


def _single(audio: Path, text: str) -> Item:
    """One file with its text.

    Raises:
        DataError: the text is a file that cannot be read.
    """
    if text.endswith(".txt"):
        try:
            text = Path(text).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"{text}: {error.strerror}; expected a text file, or the words themselves") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{text}: got byte {error.object[error.start]:#04x}, expected UTF-8; convert the file"
            ) from error
    return Item(audio.stem, audio, text, 1.0)


def _read_manifest(path: Path) -> list[Item]:
    from asr.data.manifest import read_manifest

    return [Item(one.id, Path(one.audio), one.text, one.seconds) for one in read_manifest(path)]


def _align_all(aligner: Aligner, items: Sequence[Item]) -> Iterator[tuple[Item, Alignment | AsrError]]:
    """Align one after the other; a bar on standard error shows how far a manifest is."""
    from asr.audio.io import read_audio
    from asr.data.progress import seconds_bar

    with seconds_bar("aligning", sum(item.seconds for item in items), hidden=len(items) < 2) as done:
        for item in items:
            try:
                samples = read_audio(item.audio, sample_rate_hz=aligner.sample_rate_hz)
            except AsrError as error:  # names the file itself
                yield item, error
            else:
                try:
                    yield item, aligner.align(samples, item.text)
                except DataError as error:
                    yield item, DataError(f"{item.audio}: {error}")
            done(item.seconds)


def _formatted(alignment: Alignment, item: Item, kind: str, with_tokens: bool) -> str:
    from asr.decode import _align_formats as formats

    if kind == "textgrid":
        return formats.text_grid(alignment, with_tokens=with_tokens)
    if kind == "ctm":
        return formats.ctm(alignment, item.name, with_tokens=with_tokens)
    if kind == "srt":
        return formats.srt(alignment)
    return formats.as_json(alignment, str(item.audio), with_tokens=with_tokens)


def _paths(items: Sequence[Item], folder: Path, suffix: str) -> dict[str, Path]:
    """The file for each name, in `folder` whatever the name is.

    Raises:
        DataError: two names have the same file.
    """
    paths: dict[str, Path] = {}
    names: dict[Path, str] = {}
    for item in items:
        path = folder.joinpath(*(part for part in Path(f"{item.name}{suffix}").parts if part not in ("/", "..")))
        if (other := names.setdefault(path, item.name)) != item.name:
            raise DataError(
                f"{path}: got two utterances for it, {other!r} and {item.name!r}; expected ids that differ without "
                "their .."
            )
        paths[item.name] = path
    return paths


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as handle:
        handle.write(text.encode(errors="backslashreplace"))  # a name that is not UTF-8
