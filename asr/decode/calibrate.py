"""`asr calibrate MODEL DEV_MANIFEST`: confidences that are probabilities, and word times without the model's delay."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from asr.errors import DataError
from asr.metrics.calibration import Calibration, Reliability, fit_confidence, reliability
from asr.metrics.error_rates import matching_words
from asr.types import Word

if TYPE_CHECKING:
    from asr.decode.evaluate import Row

FEW_WORDS = 200


def main(argv: Sequence[str]) -> int:
    """Fit on the set's words, print how far they were off before and after, and write it into the checkpoint folder."""
    parser = argparse.ArgumentParser(
        prog="asr calibrate",
        description="Learn on a development set how often words of a confidence are right, and with --times how late "
        "words come. Goes into the checkpoint folder; recognition uses it from then on.",
    )
    parser.add_argument("model", type=Path, help="run folder (its best checkpoint) or checkpoint folder")
    parser.add_argument("manifest", type=Path, help="development set: JSON lines with audio, text, seconds")
    parser.add_argument(
        "--times", type=Path, metavar="CTM", help="when its words were said: id channel start length word"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw before and after (needs matplotlib)")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)

    from asr import checkpoint
    from asr.data.manifest import read_manifest
    from asr.decode.evaluate import evaluate_files
    from asr.decode.recognizer import BATCH_SECONDS, Recognizer

    utterances = read_manifest(options.manifest)
    times = read_ctm(options.times) if options.times else {}
    loaded = checkpoint.load(options.model)
    recognizer = Recognizer(replace(loaded, calibration=None), options.device)
    evaluation = evaluate_files(recognizer, utterances, batch_seconds=BATCH_SECONDS)
    for utterance, why in evaluation.failures.items():
        print(f"asr calibrate: left out {utterance}: {why}", file=sys.stderr)
    if evaluation.failures:
        count = f"{len(evaluation.failures)} of {len(utterances)}"
        print(f"asr calibrate: {count} utterances could not be read", file=sys.stderr)
    if not any(row.heard for row in evaluation.rows):
        raise DataError(f"{options.manifest}: the model recognised no word in {len(evaluation.rows)} utterances")
    before = evaluation.reliability
    calibration, after = fit(evaluation.rows)
    print(f"{sum(before.count)} words; confidences off by {100 * before.error:.1f} % as they are, ", end="")
    print(f"{100 * after.error:.1f} % calibrated (each half of the utterances by what the other half gives)")
    if after.error >= before.error:
        print("left as they are")
        calibration = Calibration()
    else:
        print(f"temperature {1 / calibration.slope:.3g}, bias {calibration.bias:.3g}")
    if sum(before.count) < FEW_WORDS:
        print(f"that is few: with fewer than {FEW_WORDS} words the fit is itself uncertain")
    earlier = loaded.calibration or Calibration()
    delays = earlier.start_delay_seconds, earlier.end_delay_seconds
    if times:
        starts, ends = time_errors(evaluation.rows, times)
        if not starts:
            raise DataError(f"{options.times}: no word of it was recognised; are its ids those of {options.manifest}?")
        delays = statistics.median(starts), statistics.median(ends)
        print(
            f"{len(starts)} words with known times; they begin {1000 * delays[0]:+.0f} ms and end "
            f"{1000 * delays[1]:+.0f} ms late, median"
        )
    calibration = replace(calibration, start_delay_seconds=delays[0], end_delay_seconds=delays[1])
    checkpoint.write_calibration(loaded.folder, calibration)
    print(f"written: {loaded.folder / checkpoint.CALIBRATION}")
    if options.picture:
        from asr.metrics.reliability_picture import draw_reliability

        draw_reliability(options.picture, {"before": before, "after": after})
        print(f"picture: {options.picture}")
    return 0


def fit(rows: Sequence[Row]) -> tuple[Calibration, Reliability]:
    """What all rows give, and how reliable each half of them is by what the other half gives."""
    slope, bias = fit_confidence(*_words(rows))
    confidences: list[float] = []
    correct: list[bool] = []
    for half in (0, 1):
        other = Calibration(*fit_confidence(*_words(rows[1 - half :: 2])))
        values, right = _words(rows[half::2])
        confidences += other.probability(values).tolist()
        correct += right
    return Calibration(slope, bias), reliability(confidences, correct)


def time_errors(rows: Iterable[Row], times: Mapping[str, Sequence[Word]]) -> tuple[list[float], list[float]]:
    """Seconds by which recognised words begin and end later than they were said, of words that are right.

    Args:
        rows: of an evaluation.
        times: utterance -> its words.
    """
    starts, ends = [], []
    for row in rows:
        said = times.get(row.id, ())
        for place, other in matching_words([word.text for word in said], [word.text for word in row.heard]):
            starts.append(row.heard[other].start_seconds - said[place].start_seconds)
            ends.append(row.heard[other].end_seconds - said[place].end_seconds)
    return starts, ends


def read_ctm(path: Path) -> dict[str, list[Word]]:
    """Utterance -> words, of lines `id channel start length word [confidence]` in seconds; ";;" begins a comment.

    Raises:
        DataError: the file cannot be read, or a line is not like that.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    words: dict[str, list[Word]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, _, start, length, text = line.split()[:5]
            words.setdefault(name, []).append(Word(text, float(start), float(start) + float(length), 1.0))
        except ValueError:
            raise DataError(f"{path}:{number}: got {line[:80]!r}, expected: id channel start length word") from None
    return words


def _words(rows: Iterable[Row]) -> tuple[list[float], list[bool]]:
    heard = [word.confidence for row in rows for word in row.heard]
    return heard, [value for row in rows for value in row.correct]
