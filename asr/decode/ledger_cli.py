"""`asr ledger RUN`: training utterances to look at, with what the model hears in them, and those left out."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.errors import DataError
from asr.types import Drop, Utterance

if TYPE_CHECKING:
    from asr.data.shards import ShardReader
    from asr.decode.suspects import Hearing, Losses

LEDGER = "ledger.jsonl"  # in a run folder; in a folder of shards, or in the one above for all of a corpus's splits
INDENT = " " * 5
CANDIDATES = 2  # so many times the utterances to be listed are listened to, those with the highest losses


def main(argv: Sequence[str]) -> int:
    """Print the list, and write the cleaned manifest if asked; exit status 1 if any audio could not be read."""
    parser = argparse.ArgumentParser(
        prog="asr ledger",
        description="List the training utterances whose transcripts are most suspicious, beside what the model hears, "
        "and those that were left out, with reasons.",
        epilog="An utterance is suspicious whose loss per token, averaged over the last epochs of training, is high "
        "for its length, and whose transcript is much less likely than what the model hears.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--top", type=int, default=100, metavar="N", help="how many to list (100)")
    parser.add_argument("--above", type=float, metavar="LOSS", help="only those with a higher loss, in nats per token")
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="MANIFEST_OUT",
        help="write the training manifest without all above --above LOSS, or, without it, without those listed",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with everything")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)
    if options.top < 1:
        parser.error(f"--top: got {options.top}, expected 1 or more")

    from asr.decode.suspects import read_losses

    losses = read_losses(options.run)
    drops = read_drops(options.run, losses.corpus.readers)
    suspects = losses.most_suspicious(options.above).tolist()
    heard = _hear(options.run, options.device, losses, suspects[: CANDIDATES * options.top])
    rows = {number: as_row(losses, number, result) for number, result in heard}
    listed = sorted(rows, key=lambda number: -rows[number]["suspicion"])[: options.top]
    rows = [rows[number] for number in listed]
    if options.clean:
        write_clean(options.clean, losses, listed if options.above is None else suspects)
    if options.json:
        whole = {**summary(losses), "suspicious": rows, "left_out": [asdict(drop) for drop in drops]}
        print(json.dumps(whole, ensure_ascii=False, indent=1))
    else:
        print_report(losses, rows, drops, options.top)
    unreadable = sum("error" in row for row in rows)
    if unreadable:
        print(f"asr ledger: {unreadable} of {len(rows)} utterances could not be recognised", file=sys.stderr)
    return 1 if unreadable else 0


def _hear(
    run: Path, device: str | None, losses: Losses, numbers: Sequence[int]
) -> Iterator[tuple[int, Hearing | Drop]]:
    """Recognise one after the other with the run's best checkpoint; a bar on standard error shows how far it is."""
    from asr.checkpoint import load
    from asr.data.progress import progress_bar
    from asr.decode.recognizer import Recognizer
    from asr.decode.suspects import hear

    if not numbers:
        return
    recognizer = Recognizer(load(run), device)
    with progress_bar("listening", len(numbers)) as done:
        for pair in zip(numbers, hear(recognizer, losses.corpus, numbers), strict=True):
            yield pair
            done(1)


def read_drops(run: Path, readers: Iterable[ShardReader]) -> list[Drop]:
    """What was left out while the shards of `readers` were prepared, and then in training; each once."""
    from asr.data.ledger import Ledger
    from asr.data.shard_plan import MANIFEST_FILE

    drops: list[Drop] = []
    for folder, name in ((reader.folder, reader.name) for reader in readers if reader.folder is not None):
        path = folder / LEDGER  # of make_shards
        if not path.is_file() and (folder / MANIFEST_FILE).is_file():  # of a corpus's split
            path = folder.parent / LEDGER
        drops += [replace(drop, source=name) if drop.source == folder.name else drop for drop in Ledger(path).drops]
    drops += Ledger(run / LEDGER).drops
    return list({(drop.source, drop.id): drop for drop in drops}.values())


def summary(losses: Losses) -> dict[str, Any]:
    """Figures of all losses."""
    import numpy as np

    counted = ~np.isnan(losses.losses)
    return {
        "checkpoint": str(losses.folder),
        "utterances": int(counted.sum()),
        "median_loss": round(float(np.median(losses.losses[counted])), 4) if counted.any() else None,
    }


def as_row(losses: Losses, number: int, result: Hearing | Drop) -> dict[str, Any]:
    """One utterance as JSON values."""
    corpus = losses.corpus
    row: dict[str, Any] = {
        "id": corpus.ids[number],
        "source": corpus.source(number),
        "seconds": round(int(corpus.num_samples[number]) / corpus.sample_rate_hz, 3),
        "loss": round(float(losses.losses[number]), 4),
        "typical_loss": round(float(losses.typical[number]), 4),
    }
    excess = row["loss"] - row["typical_loss"]
    if isinstance(result, Drop):
        return row | {"suspicion": round(excess, 4), "text": corpus.texts[number], "error": result.detail}
    return row | {"suspicion": round(excess + result.contradiction, 4)} | asdict(result)


def write_clean(path: Path, losses: Losses, removed: Sequence[int]) -> None:
    """Write what the shards were made from as one manifest, without the utterances in `removed`.

    Raises:
        DataError: it is not where the shards are, or nothing would be left.
    """
    from asr.data.manifest import write_manifest
    from asr.data.shard_plan import MANIFEST_FILE, PLAN_FILE, made_from

    trained = summary(losses)["utterances"]
    if len(removed) >= trained:
        raise DataError(
            f"{path}: not written: all {trained} utterances would be left out; lower --top or raise --above"
        )
    kept: list[Utterance] = []
    start = total = 0
    for reader in losses.corpus.readers:
        gone = {reader.ids[number - start] for number in removed if start <= number < start + len(reader)}
        start += len(reader)
        _, lines = made_from(reader.folder)
        if not lines:
            raise DataError(
                f"{reader.location}: --clean needs {MANIFEST_FILE} or {PLAN_FILE} beside the shards; neither is here"
            )
        total += len(lines)
        kept += [utterance for utterance in lines.values() if utterance.id not in gone]
    if len({utterance.id for utterance in kept}) < len(kept):  # the same name in two splits
        kept = [replace(utterance, id=str(Path(utterance.audio).with_suffix(""))) for utterance in kept]
    write_manifest(path, kept)
    print(f"{path}: {len(kept)} of {total} utterances, without {total - len(kept)} suspicious ones", file=sys.stderr)


def print_report(losses: Losses, rows: Sequence[dict[str, Any]], drops: Sequence[Drop], top: int) -> None:
    """The list for people to read."""
    figures = summary(losses)
    print(f"{figures['checkpoint']}: {figures['utterances']} training utterances, median loss {figures['median_loss']}")
    if rows:
        print(LEGEND)
    for place, row in enumerate(rows, 1):
        print(f"\n{place:4} {row['id']} of {row['source']}, {row['seconds']:.2f} s: {_figures(row)}")
        if "error" in row:
            print(f"{INDENT}text: {row['text']}\n{INDENT}not recognised: {row['error']}")
        else:
            from asr.decode.aligned_texts import aligned_lines

            width = shutil.get_terminal_size((100, 24)).columns - len(INDENT)
            for line in aligned_lines(row["text"], row["heard"], row["word_log_probs"], width):
                print(f"{INDENT}{line}")
    if drops:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(drop.reason for drop in drops).most_common())
        print(f"\nleft out: {reasons}")
        for drop in drops[:top]:
            print(f"{INDENT}{drop.id} of {drop.source}: {drop.reason}: {drop.detail}")
        if len(drops) > top:
            print(f"{INDENT}and {len(drops) - top} more; --json or a higher --top lists them")


LEGEND = """\
loss: nats per token in training (in brackets: the median for audio of that length); contradiction: nats per token by
which the model prefers what it hears. First come those whose loss above the median, plus contradiction, is highest.
REF: the transcript, HYP: what the model hears, log p: the transcript's tokens where they fit best, mean by word."""


def _figures(row: dict[str, Any]) -> str:
    figures = f"loss {row['loss']:.2f} ({row['typical_loss']:.2f})"
    return figures if "error" in row else f"{figures}, contradiction {row['contradiction']:.2f}"
