"""The options of the search for the text, on the command line: greedy, or a beam with a language model and hotwords."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from asr.errors import ConfigError, DataError

if TYPE_CHECKING:
    from asr.decode.decoder import Decoder
    from asr.text.tokenizer import Tokenizer

BEAM_SIZE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; any of them turns the beam on."""
    group = parser.add_argument_group("beam search (without any of these: greedy)")
    group.add_argument("--beam", type=int, metavar="SIZE", help=f"hypotheses that are kept ({BEAM_SIZE})")
    group.add_argument("--lm", type=Path, metavar="ARPA", help="n-gram language model, .arpa or .arpa.gz")
    group.add_argument("--alpha", type=float, default=0.5, help="weight of the language model (0.5)")
    group.add_argument("--beta", type=float, default=1.0, help="bonus of each word (1.0)")
    group.add_argument("--lm-unit", choices=("words", "characters", "tokens"), default="words", help="of the model")
    group.add_argument("--word-list", type=Path, metavar="FILE", help="only these words, one a line")
    group.add_argument(
        "--hotwords", type=Path, metavar="FILE", help="a phrase a line, with a tab and its boost if not 5"
    )


def add_nbest(parser: argparse.ArgumentParser) -> None:
    """Add --nbest."""
    parser.add_argument(
        "--nbest", type=int, metavar="N", help="print N readings with their scores, best first; needs a beam"
    )


def check_nbest(options: argparse.Namespace) -> None:
    """Refuse an --nbest that the search cannot give.

    Raises:
        ConfigError: there is no beam, or N is not from 1 to its size.
    """
    if options.nbest is None:
        return
    if not _has_beam(options):
        raise ConfigError(f"--nbest: got {options.nbest} with greedy search, which has one reading; add --beam SIZE")
    size = options.beam or BEAM_SIZE
    if not 1 <= options.nbest <= size:
        raise ConfigError(f"--nbest: got {options.nbest}, expected 1 to {size}, the beam's size")


def _has_beam(options: argparse.Namespace) -> bool:
    return bool(options.beam or options.lm or options.word_list or options.hotwords)


def build_decoder(options: argparse.Namespace, tokenizer: Tokenizer) -> Decoder | None:
    """The decoder that the options ask for; None: greedy.

    Raises:
        DataError: a file cannot be read, or says what the model cannot spell.
    """
    if not _has_beam(options):
        return None
    from asr.compiled import before_compiling
    from asr.decode.beam import BeamDecoder
    from asr.decode.ngram import NgramModel

    before_compiling(_announce)
    words = None if options.word_list is None else [word for word, _ in _lines(options.word_list)]
    hotwords = None if options.hotwords is None else dict(_boosts(options.hotwords))
    try:
        decoder = BeamDecoder(
            tokenizer,
            beam_size=options.beam or BEAM_SIZE,
            lm=None if options.lm is None else NgramModel.read(options.lm),
            alpha=options.alpha,
            beta=options.beta,
            unit=options.lm_unit,
            word_list=words,
            hotwords=hotwords,
        )
    except ValueError as error:
        raise DataError(f"beam search: {error}") from error
    if decoder.unspelled:
        count, first = len(decoder.unspelled), ", ".join(decoder.unspelled[:5])
        text = f"{options.word_list}: left out {count} words that the model's tokens cannot spell: {first}"
        print(text + (", ..." if count > 5 else ""), file=sys.stderr, flush=True)
    return decoder


def _announce() -> None:
    print("compiling the beam search, the first time: 10 to 20 s", file=sys.stderr, flush=True)


def _boosts(path: Path) -> list[tuple[str, float]]:
    boosts = []
    for phrase, number in _lines(path):
        text, _, boost = phrase.partition("\t")
        try:
            boosts.append((text.strip(), float(boost) if boost else 5.0))
        except ValueError:
            raise DataError(f"{path}:{number}: got the boost {boost!r}, expected a number") from None
    return boosts


def _lines(path: Path) -> list[tuple[str, int]]:
    """Lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return [(line.strip(), number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
