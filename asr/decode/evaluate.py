"""Word and character error rates of a model on a manifest or a split: edits summed, then divided."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.atomic import atomic_write
from asr.decode import search
from asr.errors import AsrError
from asr.metrics.calibration import Reliability, reliability
from asr.metrics.error_rates import Edits, character_edits, matching_words, word_edits
from asr.types import Word

if TYPE_CHECKING:
    from asr.data.corpus import Corpus
    from asr.decode.recognizer import Recognizer, Source
    from asr.types import Utterance

NUM_SHOWN = 8  # transcripts in the printed report
MAX_SHOWN_CHARACTERS = 400  # of each; the file by utterance has the whole


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance: what was said, what was recognised, and the edits between them.

    heard: the recognised words. correct: whether each of them is right.
    """

    id: str
    reference: str
    hypothesis: str
    words: Edits
    characters: Edits
    heard: tuple[Word, ...] = ()
    correct: tuple[bool, ...] = ()


@dataclass(slots=True)
class Evaluation:
    """All utterances of an evaluation, in the order given; `failures` could not be read."""

    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> Edits:
        """Word edits, summed."""
        return sum((row.words for row in self.rows), Edits())

    @property
    def characters(self) -> Edits:
        """Character edits, summed."""
        return sum((row.characters for row in self.rows), Edits())

    @property
    def reliability(self) -> Reliability:
        """How often words of each confidence are right."""
        confidences = [word.confidence for row in self.rows for word in row.heard]
        return reliability(confidences, [value for row in self.rows for value in row.correct])

    def rate(self, edits: Edits) -> float | None:
        """Edits by what was said; None if nothing was evaluated, or nothing was said and something recognised."""
        return edits.rate if self.rows and math.isfinite(edits.rate) else None

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values; rates are fractions, None where there is none."""
        words, characters = self.words, self.characters
        return {
            "wer": self.rate(words),
            "cer": self.rate(characters),
            "calibration_error": self.reliability.error if any(row.heard for row in self.rows) else None,
            "utterances": len(self.rows),
            "unreadable": len(self.failures),
            "words": asdict(words),
            "characters": asdict(characters),
        }

    def write(self, path: Path) -> None:
        """One JSON line an utterance, unreadable ones included."""
        lines = [json.dumps(asdict(row), ensure_ascii=False) for row in self.rows]
        lines += [json.dumps({"id": name, "error": why}, ensure_ascii=False) for name, why in self.failures.items()]
        with atomic_write(path) as handle:
            handle.write("".join(line + "\n" for line in lines).encode())


def evaluate(
    recognizer: Recognizer,
    sources: Sequence[Source],
    references: Sequence[tuple[str, str]],
    *,
    batch_seconds: float,
) -> Evaluation:
    """Recognise `sources` and compare with `references`, (id, text) each, in the form that the model spells."""
    results = dict(recognizer.transcribe_many(sources, batch_seconds=batch_seconds))
    evaluation = Evaluation()
    for i, (name, text) in enumerate(references):
        result = results[i]
        if isinstance(result, AsrError):
            evaluation.failures[name] = str(result)
        else:
            said = recognizer.tokenizer.normalize(text)
            edits = word_edits(said, result.text), character_edits(said, result.text)
            heard = [word.text for word in result.words]
            right = {place for _, place in matching_words(said.split(), heard)}
            correct = tuple(place in right for place in range(len(heard)))
            evaluation.rows.append(Row(name, said, result.text, *edits, result.words, correct))
    return evaluation


def evaluate_corpus(recognizer: Recognizer, corpus: Corpus, *, batch_seconds: float) -> Evaluation:
    """Evaluate on shards, as training does at its end."""
    from asr.decode.recognizer import Source

    sources = [
        Source(int(samples) / corpus.sample_rate_hz, lambda i=i: corpus.audio(i), name=corpus.ids[i])
        for i, samples in enumerate(corpus.num_samples)
    ]
    return evaluate(recognizer, sources, list(zip(corpus.ids, corpus.texts, strict=True)), batch_seconds=batch_seconds)


def evaluate_files(recognizer: Recognizer, utterances: Sequence[Utterance], *, batch_seconds: float) -> Evaluation:
    """Evaluate on the files of a manifest, batched by the lengths that the files themselves state."""
    from asr.audio.io import read_audio
    from asr.decode.recognizer import Source

    def source(path: str) -> Source:
        try:
            return recognizer.file_source(path)
        except AsrError:  # which reading it gives again, for this utterance
            return Source(0.0, lambda: read_audio(path, sample_rate_hz=recognizer.sample_rate_hz))

    sources = [source(utterance.audio) for utterance in utterances]
    return evaluate(recognizer, sources, [(u.id, u.text) for u in utterances], batch_seconds=batch_seconds)


def print_report(name: str, evaluation: Evaluation) -> None:
    """A table of the rates, and some transcripts: the worst, and some from all over."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", "rate", "substitutions", "deletions", "insertions", "reference", title=f"{name}")
    for label, edits in (("words", evaluation.words), ("characters", evaluation.characters)):
        counts = (edits.substitutions, edits.deletions, edits.insertions, edits.reference_length)
        rate = evaluation.rate(edits)
        table.add_row(label, "none" if rate is None else f"{100 * rate:.2f} %", *map(str, counts))
    console.print(table)
    if any(row.heard for row in evaluation.rows):
        console.print(f"confidences are off by {100 * evaluation.reliability.error:.1f} %, on average over words (ECE)")
    if evaluation.rows:
        sample = Table("", "said", "recognised", title="transcripts: the worst first, then some from all over")
        for row in examples(evaluation.rows):
            sample.add_row(str(row.words.total), _shortened(row.reference), _shortened(row.hypothesis))
        console.print(sample)
    for utterance, why in evaluation.failures.items():
        console.print(f"not evaluated: {utterance}: {why}", style="red")


def examples(rows: Sequence[Row]) -> list[Row]:
    """Some rows to look at, each once: the worst, then others evenly from all over."""
    worst = sorted(range(len(rows)), key=lambda i: -rows[i].words.total)[: NUM_SHOWN // 2]
    others = [i for i in range(len(rows)) if i not in worst]
    spread = others[:: max(1, len(others) // (NUM_SHOWN // 2))][: NUM_SHOWN // 2]
    return [rows[i] for i in [*worst, *spread]]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."


def main(argv: Sequence[str]) -> int:
    """`asr evaluate MODEL MANIFEST`."""
    parser = argparse.ArgumentParser(prog="asr evaluate", description="Error rates of a model on a manifest.")
    parser.add_argument("model", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("manifest", type=Path, help="JSON lines with audio, text, seconds")
    parser.add_argument("--output", type=Path, help="by-utterance file; default: MANIFEST.evaluation.jsonl here")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--reliability", type=Path, metavar="PNG", help="draw how often words are right, by confidence")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--batch-seconds", type=float, default=600.0, help="audio recognised at a time (600)")
    search.add_arguments(parser)
    options = parser.parse_args(argv)

    from asr.checkpoint import load
    from asr.data.manifest import read_manifest
    from asr.decode.recognizer import Recognizer

    utterances = read_manifest(options.manifest)
    checkpoint = load(options.model)
    decoder = search.build_decoder(options, checkpoint.tokenizer)
    recognizer = Recognizer(checkpoint, options.device, decoder=decoder)
    evaluation = evaluate_files(recognizer, utterances, batch_seconds=options.batch_seconds)
    # Printed first: that a file cannot be written does not cost the figures.
    if options.json:
        print(json.dumps(evaluation.summary()))
    else:
        print_report(options.manifest.name, evaluation)
    output = options.output or Path(f"{options.manifest.name}.evaluation.jsonl")
    evaluation.write(output)
    if not options.json:
        print(f"by utterance: {output}")
    if options.reliability:
        from asr.metrics.reliability_picture import draw_reliability

        draw_reliability(options.reliability, {options.manifest.name: evaluation.reliability})
    if evaluation.failures:
        count = f"{len(evaluation.failures)} of {len(utterances)}"
        print(f"asr evaluate: {count} utterances could not be read", file=sys.stderr)
    return 1 if evaluation.failures else 0
