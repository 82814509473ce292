"""Train an n-gram language model: `python data_prep/train_ngram.py TEXT... --order 4 --output LM.arpa.gz`.

Modified Kneser-Ney smoothing, interpolated, as KenLM's lmplz computes it, in bounded memory and without a compiler.
`asr.decode` reads what this writes, and so does whatever else reads ARPA files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from asr.checkpoint import TOKENIZER, find, verify
from asr.data.progress import progress_bar
from asr.errors import ConfigError, DataError
from asr.messages import user_errors_exit
from asr.text.tokenizer import Tokenizer, tokenizer_from_json
from data_prep._arpa import write_arpa
from data_prep._kneser_ney import KneserNey, Order
from data_prep._ngram_text import SPECIAL, NumberedText, number_text

DEFAULT_FALLBACK = (0.5, 1.0, 1.5)  # lmplz's own
DEFAULT_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Summary:
    """What was trained: the text's sizes, the orders, and how many words were left out of the model."""

    num_words: int
    num_sentences: int
    num_empty: int
    num_left_out: int
    orders: tuple[Order, ...]


def train_ngram(
    texts: Sequence[str | Path],
    output: str | Path,
    *,
    order: int,
    prune: Sequence[int] = (),
    discount_fallback: tuple[float, float, float] | None = None,
    vocabulary: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    characters: bool = False,
    memory_mb: int = DEFAULT_MEMORY_MB,
) -> Summary:
    """Train a language model and write it as ARPA.

    Args:
        texts: UTF-8 files with a sentence a line, plain or gzipped; "-" is standard input. An empty line is a sentence
            without words, as it is for lmplz; the end of a file ends a sentence, which lmplz only does at a line end.
        output: the ARPA file; gzipped if its name ends in .gz. Temporary files go to its folder.
        order: words in the longest n-grams.
        prune: for each order the count up to which n-grams are left out; non-decreasing, the last one goes on.
        discount_fallback: D1, D2, D3+ for orders whose own cannot be computed.
        vocabulary: file of words; n-grams with others are left out, and what they would have had goes to <unk>.
        tokenizer: a model's: texts are normalised as it has it, and words that it cannot spell are left out.
        characters: each character is a word.
        memory_mb: for sorting; the vocabulary comes on top.

    Raises:
        ConfigError: an option is wrong.
        DataError: a file cannot be read or written, or the text does not allow for a model.
    """
    thresholds = _thresholds(prune, order)
    for k, discount in enumerate(discount_fallback or (), 1):
        if not 0 <= discount <= k:
            raise ConfigError(f"--discount-fallback: got {discount:g} for count {k}, expected 0 to {k}")
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            text = number_text(texts, Path(folder) / "ids", tokenizer=tokenizer, characters=characters)
            left_out = _left_out(text, vocabulary, tokenizer)
            model = KneserNey(
                text,
                Path(folder),
                order=order,
                thresholds=thresholds,
                left_out=left_out,
                fallback=discount_fallback,
                max_bytes=memory_mb * 2**20,
            )
            with progress_bar("counting", text.num_words + text.num_sentences) as progress:
                counts = model.count(progress)
            with progress_bar("estimating", order) as progress:
                model.estimate(counts, progress)
            with progress_bar("writing", sum(found.num_kept for found in model.orders)) as progress:
                write_arpa(output, model, text.words, progress)
    except OSError as error:
        raise DataError(
            f"{output.parent}: {error.strerror or error}; temporary files of some 100 bytes for each "
            "different n-gram go there"
        ) from error
    return Summary(text.num_words, text.num_sentences, text.num_empty, int(left_out.sum()), tuple(model.orders))


def _thresholds(prune: Sequence[int], order: int) -> list[int]:
    if order < 1:
        raise ConfigError(f"--order: got {order}, expected 1 or more")
    if len(prune) > order:
        raise ConfigError(f"--prune: got {len(prune)} thresholds, expected at most {order}, one an order")
    given = list(prune) or [0]
    if given[0] < 0 or given != sorted(given):
        raise ConfigError(
            f"--prune: got {' '.join(map(str, given))}, expected counts >= 0 that do not fall: what an n-gram is made "
            "of would be missing"
        )
    return given + [given[-1]] * (order - len(given))


def _left_out(text: NumberedText, vocabulary: str | Path | None, tokenizer: Tokenizer | None) -> NDArray[np.bool_]:
    """Which words the model shall not have."""
    left_out = np.zeros(len(text.words), bool)
    if tokenizer is not None:
        known = tokenizer.characters
        left_out |= [not known.issuperset(word.decode()) for word in text.words]
    if vocabulary is not None:
        try:
            content = Path(vocabulary).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{vocabulary}: cannot be read: {error}; expected words in UTF-8") from error
        listed = content.split()
        words = {word.encode() for word in (map(tokenizer.normalize, listed) if tokenizer else listed)}
        left_out |= [word not in words for word in text.words]
    left_out[: len(SPECIAL)] = False
    if left_out[len(SPECIAL) :].all():
        where = f"{vocabulary}" if vocabulary is not None else "the model's characters"
        example = text.words[len(SPECIAL)].decode()
        raise DataError(f"{where}: none of the text's words fits, such as {example!r}; compare case and alphabet")
    return left_out


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, train, say what was found."""
    parser = argparse.ArgumentParser(prog="train_ngram", description="Train an n-gram language model; writes ARPA.")
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT", help="UTF-8, a sentence a line, plain or gzipped; - : stdin"
    )
    parser.add_argument("--order", type=int, required=True, help="words in the longest n-grams")
    parser.add_argument("--output", type=Path, required=True, help="ARPA file; gzipped if it ends in .gz")
    parser.add_argument(
        "--prune", type=int, nargs="+", default=[], metavar="COUNT",
        help="leave out n-grams that occur so often or less: one for each order, the last goes on (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--discount-fallback", type=float, nargs="*", metavar="D",
        help="D1 D2 D3+ for orders whose discounts cannot be computed (without values: 0.5 1 1.5)",
    )  # fmt: skip
    parser.add_argument("--vocabulary", type=Path, help="file of words; others are left out of the model")
    parser.add_argument("--model", type=Path, help="run or checkpoint folder: text is normalised as its tokens need")
    parser.add_argument("--characters", action="store_true", help="each character is a word: for Mandarin")
    parser.add_argument("--memory-mb", type=int, default=DEFAULT_MEMORY_MB, help="for sorting (1024)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    options = parser.parse_args(argv)
    fallback = options.discount_fallback
    if fallback is not None and len(fallback) not in (0, 3):
        parser.error(f"--discount-fallback: got {len(fallback)} values, expected none or three")
    if options.memory_mb < 1:
        parser.error(f"--memory-mb: got {options.memory_mb}, expected 1 or more")

    started = time.perf_counter()
    with user_errors_exit("train_ngram"):
        tokenizer = None
        if options.model:
            folder = find(options.model)
            verify(folder)
            tokenizer = tokenizer_from_json((folder / TOKENIZER).read_text())
        summary = train_ngram(
            options.texts,
            options.output,
            order=options.order,
            prune=options.prune,
            discount_fallback=None if fallback is None else tuple(fallback) or DEFAULT_FALLBACK,
            vocabulary=options.vocabulary,
            tokenizer=tokenizer,
            characters=options.characters,
            memory_mb=options.memory_mb,
        )
        _report(summary, options, time.perf_counter() - started)
    return 0


def _report(summary: Summary, options: argparse.Namespace, seconds: float) -> None:
    if options.json:
        orders = [
            {"counted": found.num_counted, "kept": found.num_kept, "discounts": found.discounts}
            for found in summary.orders
        ]
        figures = {"words": summary.num_words, "sentences": summary.num_sentences, "seconds": round(seconds, 3)}
        print(json.dumps({"output": str(options.output), **figures, "orders": orders}))
    else:
        print(
            f"{options.output}: {summary.num_words} words in {summary.num_sentences} sentences, {seconds:.1f} s, "
            f"{summary.num_words / seconds:.0f} words/s"
        )
        for order, found in enumerate(summary.orders, 1):
            d1, d2, d3 = found.discounts
            kept = f"{found.num_kept} of {found.num_counted}" if found.num_kept < found.num_counted else found.num_kept
            note = ", fallback" if found.fallback else ""
            print(f"  {order}-grams: {kept}; discounts {d1:.4f} {d2:.4f} {d3:.4f}{note}")
    if summary.num_left_out:
        print(f"train_ngram: {summary.num_left_out} different words were left out of the model", file=sys.stderr)
    if summary.num_empty:
        print(f"train_ngram: {summary.num_empty} empty lines count as sentences without words", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
