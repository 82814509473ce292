"""Work and latency of streams: chunks of 40 to 320 ms, 1 to 16 streams at a time, one core, PCM in to text out.

    python benchmarks/streaming.py [--model RUN | --preset small_streaming] [--audio FILES...]

For each chunk length and number of streams, greedy: every stream takes a chunk, one call of the network hears them all,
every stream gives its result. `work`: seconds of that, a step. `real_time_factor`: work over audio, all streams'
together. `latency`: for each output frame, how long after its own beginning text that holds it is there, if a chunk
comes when its audio has been said and the work takes what it was measured to take: chunk, look-ahead and work in one.

Without a run the preset's untrained net is timed, on noise: the network's work is the same, the text is not speech.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import emit, spread
from numpy.typing import NDArray

from asr import checkpoint, model
from asr.audio.io import read_audio
from asr.checkpoint import Checkpoint
from asr.config import load
from asr.decode.recognizer import Recognizer
from asr.process import prepare_process
from asr.text.tokenizer import build_tokenizer

CHUNK_MS = (40, 80, 160, 320)
STREAMS = (1, 4, 16)
SECONDS = 20.0  # of audio for each stream
WARM_UP = 4  # steps that are not counted: look-aheads fill, kernels are chosen
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="run folder")
    parser.add_argument("--preset", default="small_streaming", help="model preset, untrained, where no run is given")
    parser.add_argument("--audio", nargs="+", type=Path, help="speech, repeated to 20 s a stream; default: noise")
    parser.add_argument("--chunk-ms", nargs="+", type=int, default=CHUNK_MS)
    parser.add_argument("--streams", nargs="+", type=int, default=STREAMS)
    options = parser.parse_args()
    prepare_process()  # as commands do
    torch.set_num_threads(1)
    recognizer = Recognizer(checkpoint.load(options.model) if options.model else untrained(options.preset), "cpu")
    facts = {
        "model": str(options.model.name) if options.model else f"{options.preset}, untrained",
        "parameters": sum(p.numel() for p in recognizer.model.parameters()),
        "lookahead_seconds": round(recognizer.lookahead_seconds, 4),
    }
    for num_streams in options.streams:
        audio = sound(recognizer.sample_rate_hz, num_streams, options.audio)
        for chunk_ms in options.chunk_ms:
            emit(benchmark="streaming", **facts, chunk_ms=chunk_ms, **measure(recognizer, audio, chunk_ms))


def untrained(preset: str) -> Checkpoint:
    """The model that a preset describes, with weights as training would begin, and a tokenizer of letters."""
    config = load(Path(__file__).parents[1] / "recipes/librispeech", [f"model={preset}", "text.tokenizer=characters"])
    tokenizer = build_tokenizer(config.text, [LETTERS])
    net = model.build(config, tokenizer.num_tokens)
    net.features.fit_normalization([sound(config.data.sample_rate_hz, 1, None)[0]])
    return Checkpoint(net.eval(), config, tokenizer, {}, Path(preset))


def sound(rate_hz: int, num_streams: int, files: Sequence[Path] | None) -> list[NDArray[np.float32]]:
    """SECONDS of audio for each stream: files one after the other, each stream from another one on, or noise."""
    size = int(SECONDS * rate_hz)
    if not files:
        return [0.1 * np.random.default_rng(row).standard_normal(size, dtype=np.float32) for row in range(num_streams)]
    read = [read_audio(file, sample_rate_hz=rate_hz) for file in files]
    return [np.resize(np.concatenate([*read[row % len(read) :], *read[: row % len(read)]]), size)
            for row in range(num_streams)]  # fmt: skip


def measure(recognizer: Recognizer, audio: Sequence[NDArray[np.float32]], chunk_ms: int) -> dict[str, object]:
    """Play `audio` into as many streams, in chunks."""
    rate_hz, frame_seconds = recognizer.sample_rate_hz, recognizer.model.frame_seconds
    chunk = chunk_ms * rate_hz // 1000
    streams = [recognizer.stream() for _ in audio]
    work: list[float] = []
    latencies: list[float] = []
    for start in range(0, len(audio[0]) - chunk + 1, chunk):
        before = streams[0].state.frame
        began = time.perf_counter()
        for stream, samples in zip(streams, audio, strict=True):
            stream.accept_waveform(samples[start : start + chunk])
        recognizer.step(streams)
        for stream in streams:
            stream.result()
        work.append(time.perf_counter() - began)
        there = (start + chunk) / rate_hz + work[-1]
        latencies += [there - frame * frame_seconds for frame in range(before, streams[0].state.frame)]
    counted = work[WARM_UP:]
    return {
        "streams": len(audio),
        "work_seconds": spread(counted),
        "work_seconds_95": statistics.quantiles(counted, n=20)[-1],
        "real_time_factor": sum(counted) / (len(counted) * len(audio) * chunk / rate_hz),
        "latency_seconds": {"median": statistics.median(latencies[WARM_UP:]), "most": max(latencies[WARM_UP:])},
    }


if __name__ == "__main__":
    main()
