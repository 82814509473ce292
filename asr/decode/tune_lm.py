"""`asr tune-lm MODEL DEV_MANIFEST --lm ARPA`: the language model's weight and the word bonus, on a development set."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr.data.progress import progress_bar
from asr.errors import AsrError, DataError
from asr.messages import positive
from asr.metrics.error_rates import Edits, word_edits
from asr.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from torch import Tensor

    from asr.decode.decoder import Decoder
    from asr.decode.ngram import NgramModel
    from asr.decode.recognizer import Recognizer
    from asr.text.tokenizer import Tokenizer
    from asr.types import Utterance

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BETAS = (-1.0, 0.0, 1.0, 2.0, 3.0)
SPELLED = 0.5  # share of the language model's words that the model has to be able to write
CHECKED_WORDS = 20_000

Rates = dict[tuple[float, float], float]  # (alpha, beta) -> word error rate


def main(argv: Sequence[str]) -> int:
    """Print the error rates of a grid, the best weights, and whether the language model helps at all."""
    parser = argparse.ArgumentParser(prog="asr tune-lm", description="Weigh a language model on a development set.")
    parser.add_argument("model", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("manifest", type=Path, help="development set: JSON lines with audio, text, seconds")
    parser.add_argument("--lm", type=Path, required=True, metavar="ARPA", help="n-gram language model of words")
    parser.add_argument("--beam", type=positive, default=50, help="hypotheses that are kept (50)")
    parser.add_argument("--alphas", type=_weights, default=ALPHAS, metavar="A,B,...", help="weights of the model")
    parser.add_argument("--betas", type=_numbers, default=BETAS, metavar="A,B,...", help="bonuses of a word")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the surface (needs matplotlib)")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)

    from asr.checkpoint import load
    from asr.data.manifest import read_manifest
    from asr.decode.ngram import NgramModel
    from asr.decode.recognizer import Recognizer

    recognizer = Recognizer(load(options.model), options.device)
    lm = NgramModel.read(options.lm)
    check_spelling(lm, recognizer.tokenizer, str(options.lm))
    rates, greedy_rate = tune(
        recognizer, read_manifest(options.manifest), lm, options.alphas, options.betas, options.beam
    )
    print("\n".join(table(rates)))
    (alpha, beta), best = min(rates.items(), key=lambda item: item[1])
    print(f"greedy {100 * greedy_rate:.2f} %, best {100 * best:.2f} % with --alpha {alpha:g} --beta {beta:g}")
    if alpha == 0:
        print(f"alpha = 0 wins: on this set {options.lm} does not help")
    elif alpha == max(a for a, _ in rates):
        print("the best alpha is the largest one tried; try larger ones with --alphas")
    if options.picture:
        draw(options.picture, rates)
        print(f"picture: {options.picture}")
    return 0


def check_spelling(lm: NgramModel, tokenizer: Tokenizer, name: str) -> None:
    """Refuse a language model whose words the model never writes, such as those of another case.

    Raises:
        DataError: names some of them.
    """
    words = [word for word in lm.words[: CHECKED_WORDS + 3] if not word.startswith("<")]
    strange = [word for word in words if tokenizer.normalize(word) != word or not set(word) <= tokenizer.characters]
    if words and len(strange) > (1 - SPELLED) * len(words):
        examples = ", ".join(repr(word) for word in strange[:5])
        raise DataError(
            f"{name}: the model never writes {len(strange)} of {len(words)} words, such as {examples}; its texts look "
            f"like {tokenizer.normalize(strange[0])!r}. Train the language model with data_prep/train_ngram.py --model "
            "RUN, which normalises its text as the model does"
        )


def tune(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    lm: NgramModel,
    alphas: Sequence[float],
    betas: Sequence[float],
    beam: int,
) -> tuple[Rates, float]:
    """Word error rates of each pair of weights, and of greedy decoding. The network runs once.

    Raises:
        DataError: no utterance can be read.
    """
    import torch

    from asr.decode.beam import BeamDecoder
    from asr.decode.greedy import GreedyDecoder

    tokenizer = recognizer.tokenizer
    heard = list(_hear(recognizer, utterances))
    if not heard:
        raise DataError(f"none of {len(utterances)} utterances can be read")
    references = [tokenizer.normalize(text) for text, _ in heard]

    def rate(decoder: Decoder) -> float:
        edits = Edits()
        for reference, (_, log_probs) in zip(references, heard, strict=True):
            lengths = torch.tensor([len(log_probs)])
            (state,) = decoder.extend([decoder.initial_state()], log_probs[None], lengths)
            edits += word_edits(reference, tokenizer.decode(decoder.best(state, final=True)[0].path.ids))
        return edits.rate

    pairs, rates = [(alpha, beta) for alpha in alphas for beta in betas], {}
    with progress_bar("tuning", len(pairs)) as done:
        for alpha, beta in pairs:
            rates[alpha, beta] = rate(BeamDecoder(tokenizer, lm=lm, beam_size=beam, alpha=alpha, beta=beta))
            done(1)
    return rates, rate(GreedyDecoder())


def table(rates: Rates) -> Iterator[str]:
    """Word error rates in percent: a row for each alpha, a column for each beta."""
    betas = sorted({beta for _, beta in rates})
    yield "alpha \\ beta" + "".join(f"{beta:8g}" for beta in betas)
    for alpha in sorted({alpha for alpha, _ in rates}):
        yield f"{alpha:12g}" + "".join(f"{100 * rates[alpha, beta]:8.2f}" for beta in betas)


def draw(path: Path, rates: Rates) -> None:
    """Draw the surface, the best pair marked.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the format.
        DataError: the picture cannot be written.
    """
    alphas, betas = sorted({a for a, _ in rates}), sorted({b for _, b in rates})
    figure = new_figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow([[100 * rates[a, b] for b in betas] for a in alphas], origin="lower", aspect="auto")
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            axes.text(j, i, f"{100 * rates[alpha, beta]:.1f}", ha="center", va="center", color="white", fontsize=8)
    best = min(rates, key=lambda pair: rates[pair])
    axes.plot(betas.index(best[1]), alphas.index(best[0]), marker="s", markersize=28, mfc="none", mec="red")
    axes.set_xticks(range(len(betas)), [f"{b:g}" for b in betas])
    axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
    axes.set(xlabel="beta, bonus of a word", ylabel="alpha, weight of the language model", title="word error rate, %")
    figure.colorbar(image)
    save_figure(figure, path, dpi=90)


def _hear(recognizer: Recognizer, utterances: Sequence[Utterance]) -> Iterator[tuple[str, Tensor]]:
    """(text, log-probabilities (S, V)) of each utterance that can be read; others are named."""
    from asr.audio.io import read_audio

    with progress_bar("listening", len(utterances)) as done:
        for utterance in utterances:
            done(1)
            try:
                samples = read_audio(utterance.audio, sample_rate_hz=recognizer.sample_rate_hz)
            except AsrError as error:
                print(f"asr tune-lm: left out {utterance.id}: {error}", file=sys.stderr)
                continue
            yield utterance.text, recognizer.log_probs(samples).cpu()


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers, as argparse's `type`."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers parted by commas")
    return values


def _weights(text: str) -> tuple[float, ...]:
    """Numbers of 0 or more, as argparse's `type`."""
    if min(values := _numbers(text)) < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers of 0 or more")
    return values
