"""Beam search with a word language model, side by side with other libraries, on matrices of known text.

    python benchmarks/beam.py --text FILE --arpa FILE [--peer-python PYTHON] [--items 5] [--repeats 5]

FILE of --text has one sentence a line, not in the language model's training text. A matrix is `--frames` frames of
29 tokens: the text's characters, each some frames long with blanks between, as logits with Gaussian noise. The noise of
`easy` and `hard` is chosen so that greedy decoding misses some 20 and some 75 of 100 words. All decoders get the same
float32 matrices, weights and vocabulary; they take turns, each in one thread, and the median is of `--repeats` times
all items. Peers (flashlight-text with kenlm, torchaudio, pyctcdecode) run in --peer-python's environment; those that
are not there are printed so.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import emit
from numpy.typing import NDArray

from asr.config.schema import Text
from asr.decode.beam import BeamDecoder
from asr.decode.greedy import greedy
from asr.decode.ngram import NgramModel
from asr.metrics.error_rates import Edits, word_edits
from asr.text.tokenizer import CharacterTokenizer

LETTERS = " '" + "abcdefghijklmnopqrstuvwxyz"
HEIGHT = 5.0  # logit of what is said, the others being 0
GREEDY_WER = {"easy": 0.21, "hard": 0.77}
TOLERANCE = 0.01

Decode = Callable[[int], tuple[float, str]]  # number of an item -> seconds, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--arpa", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--items", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beam-size", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.6, help="weight of the natural log-probability (0.6)")
    parser.add_argument("--beta", type=float, default=0.5, help="bonus a word (0.5)")
    options = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = CharacterTokenizer(LETTERS, Text())
    lm = NgramModel.read(options.arpa)
    words = [word for word in lm.words if set(word) <= set(LETTERS)]
    weights: dict[str, Any] = {"alpha": options.alpha, "beta": options.beta, "beam_size": options.beam_size}
    shared: dict[str, Any] = {"tokenizer": tokenizer, "lm": lm, **weights}
    own = {
        "asr word list": BeamDecoder(**shared, word_list=words),
        "asr word list, all tokens": BeamDecoder(**shared, word_list=words, cutoff_probability=1.0),
        "asr word list, 10 tokens": BeamDecoder(**shared, word_list=words, cutoff_count=10, margin=25.0),
        "asr any word": BeamDecoder(**shared, unknown_score=-10.0),
        "asr any word, all tokens": BeamDecoder(**shared, unknown_score=-10.0, cutoff_probability=1.0),
    }
    generator = np.random.default_rng(0)
    texts, spelled = sentences(options.text, generator, options.items, options.frames)
    for difficulty, wanted in GREEDY_WER.items():
        matrices = noisy(spelled, texts, tokenizer, wanted)
        decoders: dict[str, Decode] = {name: partial(run_own, decoder, matrices) for name, decoder in own.items()}
        decoders["asr greedy"] = partial(run_greedy, tokenizer, matrices)
        with tempfile.TemporaryDirectory() as folder:
            if options.peer_python:
                path = Path(folder) / "matrices.npy"
                np.save(path, matrices)
                job = {
                    "matrices": str(path),
                    "tokens": tokenizer.pieces,
                    "words": words,
                    "arpa": str(options.arpa),
                    **weights,
                }
                decoders |= peers(options.peer_python, job)
            compare(difficulty, decoders, texts, options)


def compare(
    difficulty: str,
    decoders: dict[str, Decode],
    texts: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Let decoders take turns, and print a row for each."""
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    edits = {name: Edits() for name in decoders}
    for repeat in range(-1, options.repeats):  # the first warms up
        for i, text in enumerate(texts):
            for name, decode in decoders.items():
                taken, said = decode(i)
                if repeat >= 0:
                    seconds[name].append(taken)
                else:
                    edits[name] += word_edits(text, said)
    for name in decoders:
        emit(
            benchmark="beam",
            decoder=name,
            difficulty=difficulty,
            milliseconds=round(1000 * statistics.median(seconds[name]), 2),
            wer=edits[name].rate,
            frames=options.frames,
            items=options.items,
            beam_size=options.beam_size,
            alpha=options.alpha,
            beta=options.beta,
        )


def sentences(
    path: Path, generator: np.random.Generator, items: int, frames: int
) -> tuple[list[str], NDArray[np.int64]]:
    """Texts of whole sentences, and what each frame says, (items, frames), blanks at the end."""
    lines = [line for line in path.read_text().splitlines() if line and set(line) <= set(LETTERS)]
    order = iter(generator.permutation(len(lines)))
    texts, rows = [], np.zeros((items, frames), np.int64)
    for row in rows:
        text, at = "", 0
        while True:
            more = (" " if text else "") + lines[next(order)]
            said = alignment(more, text[-1:], generator)
            if at + len(said) > frames:
                break
            row[at : at + len(said)] = said
            at, text = at + len(said), text + more
        texts.append(text)
    return texts, rows


def alignment(text: str, before: str, generator: np.random.Generator) -> list[int]:
    """Token of each frame: 1 or 2 a character, 0 to 2 blanks between, 1 at least between equal ones."""
    said: list[int] = []
    for character in text:
        said += [0] * max(int(generator.integers(0, 3)), character == before)
        said += [1 + LETTERS.index(character)] * int(generator.integers(1, 3))
        before = character
    return said


def noisy(
    spelled: NDArray[np.int64], texts: Sequence[str], tokenizer: CharacterTokenizer, wanted: float
) -> NDArray[np.float32]:
    """Log-probabilities (items, frames, V), with as much noise as makes greedy decoding miss `wanted` of the words."""
    noise = np.random.default_rng(1).standard_normal((*spelled.shape, tokenizer.num_tokens)).astype(np.float32)
    logits = HEIGHT * np.eye(tokenizer.num_tokens, dtype=np.float32)[spelled]
    low, high = 0.0, 2 * HEIGHT
    while True:
        level = (low + high) / 2
        matrices = torch.from_numpy(logits + np.float32(level) * noise).log_softmax(-1).numpy()
        said = (word_edits(text, run_greedy(tokenizer, matrices, i)[1]) for i, text in enumerate(texts))
        edits = sum(said, Edits())
        if abs(edits.rate - wanted) < TOLERANCE or high - low < 1e-6:
            return matrices
        low, high = (level, high) if edits.rate < wanted else (low, level)


def run_greedy(tokenizer: CharacterTokenizer, matrices: NDArray[np.float32], item: int) -> tuple[float, str]:
    start = time.perf_counter()
    matrix = torch.from_numpy(matrices[item])
    (path,) = greedy(matrix[None], torch.tensor([len(matrix)]))
    return time.perf_counter() - start, tokenizer.decode(path.ids)


def run_own(decoder: BeamDecoder, matrices: NDArray[np.float32], item: int) -> tuple[float, str]:
    start = time.perf_counter()
    matrix = torch.from_numpy(matrices[item])
    (state,) = decoder.extend([decoder.initial_state()], matrix[None], torch.tensor([len(matrix)]))
    (best,) = decoder.best(state, final=True)
    return time.perf_counter() - start, decoder.tokenizer.decode(best.path.ids)


def peers(python: Path, job: dict[str, object]) -> dict[str, Decode]:
    """Start the other libraries in an environment of their own."""
    from _beam_peers import PEERS

    process = subprocess.Popen(
        [python, Path(__file__).with_name("_beam_peers.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(request: object) -> dict[str, str]:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(request), file=requests, flush=True)
        answer = answers.readline()
        if not answer:
            raise SystemExit(
                f"{python} ended while it ran {Path(__file__).with_name('_beam_peers.py')}; it needs numpy"
            )
        return json.loads(answer)

    missing = ask(job)
    for name, why in missing.items():
        emit(benchmark="beam", decoder=name, missing=f"not installed: {why}")

    def run(name: str, item: int) -> tuple[float, str]:
        answer = ask({"peer": name, "item": item})
        return float(answer["seconds"]), answer["text"]

    return {name: partial(run, name) for name in PEERS if name not in missing}


if __name__ == "__main__":
    main()
