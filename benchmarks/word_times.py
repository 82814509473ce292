"""Word times against speech whose times are known: the test sentences of data=embedded.

    pip install onnx    # the engine computes how long each phoneme is, and has to be asked for it
    python benchmarks/word_times.py RUN ... [--folder FOLDER]

RUNs were trained with data=embedded. FOLDER keeps the audio, a manifest and a CTM, as `asr calibrate --times` reads it.
For each run: median delay of words' beginnings and ends, and the errors' median and 95th percentile, as recognised and
with the delays taken off, each half of the utterances with the other half's. Words that are recognised right count.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from common import emit
from numpy.typing import NDArray

from asr import checkpoint
from asr.data.manifest import write_manifest
from asr.data.progress import progress_bar
from asr.decode.calibrate import read_ctm, time_errors
from asr.decode.evaluate import Row, evaluate_files
from asr.decode.recognizer import BATCH_SECONDS, Recognizer
from asr.types import Utterance, Word
from data_prep.embedded import load_engine, script, speak_and_cut

if TYPE_CHECKING:
    from hibari import Hibari

RATE_HZ = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        utterances = make(folder)
        times = read_ctm(folder / "words.ctm")
        for run in options.runs:
            loaded = checkpoint.load(run)
            recognizer = Recognizer(replace(loaded, calibration=None))
            rows = evaluate_files(recognizer, utterances, batch_seconds=BATCH_SECONDS).rows
            emit(
                benchmark="word_times",
                run=run.name,
                stack=loaded.config.stack.name,
                streams=not recognizer.model.not_streamable,
                frame_seconds=recognizer.model.frame_seconds,
                words=sum(map(len, times.values())),
                begin=figures(*halves(rows, times, 0)),
                end=figures(*halves(rows, times, 1)),
            )


def make(folder: Path) -> list[Utterance]:
    """Speak the test sentences; write audio, manifest and times."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = load_engine()
    durations = Durations(engine)
    utterances, rows = [], []
    lines = script()["test"]
    with progress_bar("speaking", len(lines)) as done:
        for line in lines:
            samples, cut = speak_and_cut(durations, line, RATE_HZ)
            path = folder / f"{line.id}.wav"
            soundfile.write(path, samples, RATE_HZ)
            utterances.append(Utterance(line.id, str(path), line.text, len(samples) / RATE_HZ, line.voice.name))
            for word, (start, end) in zip(line.text.split(), durations.words, strict=True):
                start, end = (value / line.voice.pitch - cut / RATE_HZ for value in (start, end))  # as it is played
                rows.append(f"{line.id} 1 {start:.3f} {end - start:.3f} {word}")
            done(1)
    write_manifest(folder / "words.jsonl", utterances)
    (folder / "words.ctm").write_text("".join(row + "\n" for row in rows))
    return utterances


class Durations:
    """The engine, with the times of the words it has spoken last.

    words: (start, end) of each in seconds, silence at the ends included.
    """

    def __init__(self, engine: Hibari) -> None:
        onnx = importlib.import_module("onnx")  # in no extra: only this benchmark needs it
        import onnxruntime

        model = onnx.load(engine.model_path)
        (rate,) = (node for node in model.graph.node if "speed" in node.input)
        (rounded,) = (node for node in model.graph.node if rate.output[0] in node.input)
        (clipped,) = (node for node in model.graph.node if rounded.output[0] in node.input)
        model.graph.output.append(onnx.ValueInfoProto(name=clipped.output[0]))
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.output = clipped.output[0]
        self.engine = engine
        self.words: list[tuple[float, float]] = []

    def __call__(self, text: str, speed: float, seed: int) -> NDArray[np.float32]:
        samples = self.engine(text, speed=speed, seed=seed)
        (phonemes,) = self.engine.phonemize(text)
        known = [symbol for symbol in phonemes if symbol in self.engine.vocab]
        inputs = {"ids": [self.engine.ids(phonemes)], "speed": np.array([speed], np.float32)}
        frames = np.ravel(np.asarray(self.session.run([self.output], inputs)[0]))
        bounds = np.concatenate(([0], np.cumsum(frames))) * (len(samples) / self.engine.sample_rate / frames.sum())
        self.words, start, end = [], None, 0.0
        for place, symbol in enumerate([*known, " "], 1):  # place 0 is the padding's
            if symbol.isalpha() or symbol in "\u02c8\u02cc":  # stress marks
                start = bounds[place] if start is None else start
                end = bounds[place + 1]
            elif symbol == " " and start is not None:
                self.words.append((float(start), float(end)))
                start = None
        return samples


def halves(rows: Sequence[Row], times: dict[str, list[Word]], which: int) -> tuple[list[float], list[float]]:
    """Errors of beginnings (0) or ends (1), each half of the rows apart."""
    first, second = (time_errors(rows[half::2], times)[which] for half in (0, 1))
    return first, second


def figures(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median delay; median and 95th percentile of the error, as it is and without the delay."""
    errors = [*first, *second]
    without = [value - statistics.median(second) for value in first]
    without += [value - statistics.median(first) for value in second]
    result = {"words": float(len(errors)), "delay_ms": 1000 * statistics.median(errors)}
    for name, values in (("error", errors), ("error_without_delay", without)):
        sizes = np.abs(values)
        result |= {
            f"{name}_ms": 1000 * float(np.median(sizes)),
            f"{name}_95_ms": 1000 * float(np.quantile(sizes, 0.95)),
        }
    return {name: round(value, 1) for name, value in result.items()}


if __name__ == "__main__":
    main()
