"""`asr decode MODEL AUDIO...`: transcribe files, folders and globs."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr.decode import search
from asr.decode.output import as_json, as_text
from asr.errors import AsrError, DataError
from asr.types import Transcript


def main(argv: Sequence[str]) -> int:
    """Print a transcript for each file, in the order given; exit status 1 if any file could not be read."""
    parser = argparse.ArgumentParser(prog="asr decode", description="Transcribe audio files.")
    parser.add_argument("model", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("audio", nargs="*", help="audio files, folders (searched for audio), or quoted globs")
    parser.add_argument("--json", action="store_true", help="one JSON object a file, with words, seconds, confidence")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--batch-seconds", type=float, default=600.0, help="audio recognised at a time (600)")
    search.add_arguments(parser)
    search.add_nbest(parser)
    group = parser.add_argument_group("streaming")
    group.add_argument("--stream", action="store_true", help="text while the audio comes; AUDIO: files, or - for stdin")
    group.add_argument("--microphone", action="store_true", help="listen to the default microphone")
    group.add_argument("--endpoints", action="store_true", help="begin a new line after a pause, or after 20 s")
    group.add_argument("--vad", action="store_true", help="a pause is what silero-vad hears as one (extra: vad)")
    group.add_argument("--realtime", action="store_true", help="play files at the speed at which they were recorded")
    group.add_argument("--chunk-ms", type=int, default=160, help="audio taken in at a time, in milliseconds (160)")
    group.add_argument("--sample-rate", type=int, help="of - (s16le, one channel); default: the model's")
    options = parser.parse_intermixed_args(argv)
    if not options.batch_seconds > 0:
        parser.error(f"--batch-seconds: got {options.batch_seconds}, expected a number above 0")
    if options.chunk_ms < 1:
        parser.error(f"--chunk-ms: got {options.chunk_ms}, expected 1 or more")
    if not options.audio and not options.microphone:
        parser.error("audio: got none, expected files, folders, globs, or --microphone")
    streaming = options.stream or options.microphone
    if options.endpoints and not streaming:
        parser.error("--endpoints: cuts streams; expected --stream or --microphone with it")
    if options.vad and not options.endpoints:
        parser.error("--vad: says where pauses are; expected --endpoints with it")

    search.check_nbest(options)

    paths = [] if streaming else find_audio(options.audio)
    from asr.checkpoint import load
    from asr.decode.recognizer import Recognizer

    checkpoint = load(options.model)
    decoder = search.build_decoder(options, checkpoint.tokenizer)
    vad = None
    if options.vad:
        from asr.decode.vad import SileroVad

        vad = SileroVad(checkpoint.config.data.sample_rate_hz)
    recognizer = Recognizer(
        checkpoint, options.device, decoder=decoder, endpoints=options.endpoints, nbest=options.nbest or 0, vad=vad
    )
    if streaming:
        from asr.decode import stream_cli

        return stream_cli.run(recognizer, options)
    failures = 0
    named = len(paths) > 1
    for path, result in in_order(recognizer, paths, options.batch_seconds):
        if isinstance(result, AsrError):
            failures += 1
            print(f"asr decode: {result}", file=sys.stderr, flush=True)
            if options.json:
                print(json.dumps({"audio": str(path), "error": str(result)}), flush=True)
        elif options.json:
            print(as_json(str(path), result), flush=True)
        else:
            print(as_text(str(path) if named else "", result), flush=True)
    if failures:
        print(f"asr decode: {failures} of {len(paths)} files could not be read", file=sys.stderr)
    return 1 if failures else 0


def find_audio(arguments: Sequence[str]) -> list[Path]:
    """Files that the arguments name: files themselves, audio in folders, matches of globs; each once, in order.

    Raises:
        DataError: an argument names nothing, or a folder cannot be read.
    """
    from asr.audio.io import MEDIA_SUFFIXES, SOUND_SUFFIXES

    suffixes = SOUND_SUFFIXES | MEDIA_SUFFIXES
    found: dict[Path, None] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            matches = sorted(file for file in _files_below(argument) if file.suffix.lower() in suffixes)
            if not matches:
                raise DataError(f"{argument}: no audio in this folder; looked for {' '.join(sorted(suffixes))}")
        elif os.path.exists(argument):
            matches = [Path(argument)]
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))
            if not matches:
                raise DataError(f"{argument}: no such file, folder, or match that can be read")
        found.update(dict.fromkeys(matches))
    return list(found)


def _files_below(folder: str) -> Iterator[Path]:
    """Files in a folder and in those below it, also those that links lead to; each folder once, links to it last."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}; expected a folder that can be searched") from error

    seen: set[str] = set()
    pending = [folder]
    while pending:
        for top, folders, names in os.walk(pending.pop(0), onerror=refuse):
            real = os.path.realpath(top)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(top, name) for name in names)
            pending += sorted(path for name in folders if os.path.islink(path := os.path.join(top, name)))


def in_order(recognizer, paths: Sequence[Path], batch_seconds: float) -> Iterator[tuple[Path, Transcript | AsrError]]:
    """Recognise `paths`, batched by length, and give the results in the order of `paths`, as soon as that allows.

    A progress bar runs on standard error if that is a terminal, for several files or a long one.
    """
    from asr.data.progress import seconds_bar

    results: dict[int, Transcript | AsrError] = {}
    sources, where = [], []
    for i, path in enumerate(paths):
        try:
            sources.append(recognizer.file_source(path))
            where.append(i)
        except AsrError as error:
            results[i] = error
    total = sum(source.seconds for source in sources)
    given = 0
    with seconds_bar("transcribing", total, hidden=len(paths) < 2 and total <= batch_seconds) as heard:
        for j, result in recognizer.transcribe_many(sources, batch_seconds=batch_seconds, heard=heard):
            results[where[j]] = result
            while given in results:
                yield paths[given], results.pop(given)
                given += 1
    while given in results:
        yield paths[given], results.pop(given)
        given += 1
