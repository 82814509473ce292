"""One stream for a day: whether its memory stays flat and its word times stay true.

    python benchmarks/endless.py RUN AUDIO... [--hours 24] [--search greedy beam] [--rate-hz 44100] [--whole]

The files, with silence after each, are played over and over, faster than real time. A round is a whole number of output
frames, so once the network has settled (its state creeps for tens of minutes) each round has to give the same words at
the same places. What they are compared with is the first round that begins after --settle-hours. A row an hour, of all
rounds so far: `grown_mb`, resident memory above that after the first minute, now and at the most (looked at each
minute); `late_ms`, the largest difference of a word's beginning or end from its place in the reference;
`words_that_differ`, those that only one of the two has, whose times are not compared.

--whole: no endpoints, so that the stream is one segment. Its text and its tokens' places are kept then, and grow with
what is said; nothing else may. Word times are looked at once, at the end.
"""

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import emit
from numpy.typing import NDArray

from asr import checkpoint
from asr.audio.io import read_audio
from asr.audio.resample import resample
from asr.decode.beam import BeamDecoder
from asr.decode.ngram import NgramModel
from asr.decode.recognizer import Recognizer
from asr.metrics.error_rates import matching_words
from asr.types import Word

PAUSE_SECONDS = 1.6  # after each file; longer than what ends a segment
NOISE = np.float32(1e-4)  # of the silence, so that its features are those of a quiet room


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a model that streams")
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--hours", type=float, default=24.0, help="of audio (24)")
    parser.add_argument("--settle-hours", type=float, default=1.0, help="of audio before the reference (1)")
    parser.add_argument("--chunk-seconds", type=float, default=1.0, help="audio taken in at a time (1)")
    parser.add_argument("--search", nargs="+", choices=("greedy", "beam"), default=("greedy", "beam"))
    parser.add_argument("--lm", type=Path, metavar="ARPA", help="language model of the beam search")
    parser.add_argument("--rate-hz", type=int, help="of the audio that the stream is given; default: the model's")
    parser.add_argument("--whole", action="store_true", help="no endpoints: one segment that grows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for search in options.search:
        loaded = checkpoint.load(options.run)
        lm = NgramModel.read(options.lm) if options.lm and search == "beam" else None
        decoder = BeamDecoder(loaded.tokenizer, lm=lm, beta=1.0) if search == "beam" else None
        recognizer = Recognizer(loaded, "cpu", decoder=decoder, endpoints=not options.whole)
        audio = one_round(recognizer, options.audio)
        facts = {"run": options.run.name, "search": search, "lm": lm is not None, "whole": options.whole}
        for row in play(recognizer, audio, options):
            emit(benchmark="endless", **facts, **row)


def one_round(recognizer: Recognizer, files: Sequence[Path]) -> NDArray[np.float32]:
    """(N,) samples at the model's rate: the files and the pauses, a whole number of output frames."""
    rate_hz, frame = recognizer.sample_rate_hz, recognizer.samples_per_frame
    pause = np.zeros(round(PAUSE_SECONDS * rate_hz), np.float32)
    parts = [part for file in files for part in (read_audio(file, sample_rate_hz=rate_hz), pause)]
    samples = np.concatenate(parts)
    samples = np.concatenate((samples, np.zeros(-len(samples) % frame, np.float32)))
    samples += NOISE * np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
    return samples


def play(
    recognizer: Recognizer, audio: NDArray[np.float32], options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Play `audio` over and over; gives a row an hour, and one at the end."""
    seconds = len(audio) / recognizer.sample_rate_hz
    watch = Watch(seconds, 1 + int(3600 * options.settle_hours / seconds))
    rate_hz = options.rate_hz or recognizer.sample_rate_hz
    played = audio if rate_hz == recognizer.sample_rate_hz else resample(audio, recognizer.sample_rate_hz, rate_hz)
    size = round(options.chunk_seconds * rate_hz)
    chunks = round(3600 * options.hours / options.chunk_seconds)
    stream = recognizer.stream(rate_hz)
    memory = Memory()
    began = time.perf_counter()
    for number in range(chunks):
        places = np.arange(number * size, (number + 1) * size) % len(played)
        stream.accept_waveform(played[places])
        if options.whole:
            recognizer.step([stream])
        else:
            for segment in stream.result().segments:
                watch.hear(segment.words)
        heard = (number + 1) * options.chunk_seconds
        last = number + 1 == chunks
        if last and options.whole:
            watch.hear(stream.finish().words)
        if memory.look(heard) and (last or heard % 3600 < options.chunk_seconds):
            yield {
                "rate_hz": rate_hz,
                "hours": heard / 3600,
                **memory.figures(),
                **watch.figures(),
                "real_time_factor": (time.perf_counter() - began) / heard,
            }


class Watch:
    """Compares the words of each round with those of one of them.

    Args:
        seconds: length of a round.
        first: number of the round that the later ones are compared with.
    """

    def __init__(self, seconds: float, first: int) -> None:
        self.seconds, self.first = seconds, first
        self.number = 0
        self.open: list[Word] = []  # words of this round so far, in seconds from its beginning
        self.reference: list[Word] = []
        self.rounds = self.words = self.different = 0
        self.late_seconds = 0.0

    def hear(self, words: Sequence[Word]) -> None:
        """Take the next words."""
        for word in words:
            number = int(word.start_seconds / self.seconds)
            if number != self.number:
                self._close()
                self.number, self.open = number, []
            offset = number * self.seconds
            times = {"start_seconds": word.start_seconds - offset, "end_seconds": word.end_seconds - offset}
            self.open.append(replace(word, **times))

    def _close(self) -> None:
        if self.number == self.first:
            self.reference = self.open
        if self.number <= self.first:
            return
        pairs = matching_words([word.text for word in self.reference], [word.text for word in self.open])
        self.rounds += 1
        self.words += len(self.open)
        self.different += len(self.open) + len(self.reference) - 2 * len(pairs)
        for i, k in pairs:
            expected, word = self.reference[i], self.open[k]
            late = (word.start_seconds - expected.start_seconds, word.end_seconds - expected.end_seconds)
            self.late_seconds = max(self.late_seconds, *map(abs, late))

    def figures(self) -> dict[str, object]:
        """Of the rounds compared so far."""
        return {
            "rounds": self.rounds,
            "words": self.words,
            "words_that_differ": self.different,
            "late_ms": round(1000 * self.late_seconds, 1),
        }


class Memory:
    """Resident memory of this process, looked at once a minute of audio."""

    def __init__(self) -> None:
        self.minutes = 0
        self.first = self.now = self.most = 0.0

    def look(self, seconds: float) -> bool:
        """Look if a minute has passed; gives whether it has."""
        if int(seconds // 60) == self.minutes:
            return False
        self.minutes = int(seconds // 60)
        self.now = resident_mb()
        self.first = self.first or self.now
        self.most = max(self.most, self.now)
        return True

    def figures(self) -> dict[str, object]:
        return {
            "resident_mb": round(self.now, 1),
            "grown_mb": {"now": round(self.now - self.first, 2), "most": round(self.most - self.first, 2)},
        }


def resident_mb() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
