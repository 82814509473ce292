"""`asr check streaming MODEL FILES...`: the contract, on the user's own model and audio."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from asr.decode.recognizer import Recognizer

CHUNK_SECONDS = (0.01, 0.04, 0.16, 0.32, 1.0)
AGREES = 1e-3  # largest difference of two log-probabilities that float32's rounding explains in a deep net


class Offline(NamedTuple):
    """What a whole file gives: (S, V) log-probabilities, and the text."""

    log_probs: Tensor
    text: str


class Comparison(NamedTuple):
    """One file in chunks of one length: whether the texts agree, the largest difference, seconds of work by chunk."""

    same_text: bool
    difference: float
    seconds: list[float]


def main(argv: Sequence[str]) -> int:
    """Print a line for each length of chunks; exit status 1 if any text or log-probability differs."""
    parser = argparse.ArgumentParser(
        prog="asr check streaming", description="Prove that streaming gives what whole files give."
    )
    parser.add_argument("model", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("audio", nargs="+", help="audio files, folders, or quoted globs")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)

    from asr.audio.io import read_audio
    from asr.checkpoint import load
    from asr.decode.cli import find_audio
    from asr.decode.recognizer import Recognizer

    paths = find_audio(options.audio)
    recognizer = Recognizer(load(options.model), options.device)
    recognizer.model.require_streamable()
    audio = [read_audio(path, sample_rate_hz=recognizer.sample_rate_hz) for path in paths]
    offline = [
        Offline(recognizer.log_probs(samples), recognizer.transcribe_batch([samples])[0].text) for samples in audio
    ]
    total = sum(map(len, audio)) / recognizer.sample_rate_hz
    print(f"{len(paths)} files, {total:.1f} s; look-ahead {recognizer.lookahead_seconds:.3f} s, windows included")
    print(f"{'chunk':>8} {'texts':>12} {'largest difference':>20} {'work a chunk':>14} {'RTF':>8} {'latency':>9}")
    failed = False
    for seconds in CHUNK_SECONDS:
        chunk = round(seconds * recognizer.sample_rate_hz)
        rows = [compare(recognizer, *pair, chunk) for pair in zip(audio, offline, strict=True)]
        difference = max(row.difference for row in rows)
        same = sum(row.same_text for row in rows)
        work = [value for row in rows for value in row.seconds]
        typical = statistics.median(work) if work else 0.0
        latency = seconds + recognizer.lookahead_seconds + typical
        failed |= same < len(rows) or difference > AGREES
        print(
            f"{1000 * seconds:5.0f} ms {same:>5} of {len(rows):<4} {difference:20.1e} {1000 * typical:11.2f} ms"
            f" {sum(work) / max(total, 1e-9):8.4f} {latency:7.3f} s",
            flush=True,
        )
    print("streaming differs from offline" if failed else "streaming equals offline")
    return 1 if failed else 0


def compare(recognizer: Recognizer, samples: NDArray[np.float32], offline: Offline, chunk: int) -> Comparison:
    """Hear `samples` in chunks of so many samples."""
    import torch

    from asr.nn.precision import whole_float32

    model = recognizer.model
    with torch.inference_mode(), whole_float32():
        audio = torch.from_numpy(samples)[None].to(recognizer.device)
        pieces, state = [], model.initial_state(1, audio)
        for start in range(0, len(samples), chunk):
            piece, state = model.step(audio[:, start : start + chunk], state)
            pieces.append(piece[0])
        pieces.append(model.flush(state)[0])
    streamed = torch.cat(pieces)
    if streamed.shape != offline.log_probs.shape:
        return Comparison(False, float("inf"), [])
    difference = float((streamed - offline.log_probs).abs().max()) if len(streamed) else 0.0
    stream, seconds = recognizer.stream(), []
    for start in range(0, len(samples), chunk):
        began = time.perf_counter()
        stream.accept_waveform(samples[start : start + chunk])
        stream.result()
        seconds.append(time.perf_counter() - began)
    same = stream.finish().text == offline.text
    return Comparison(same, difference, seconds)
