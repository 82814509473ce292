"""Trained recognisers side by side: error rates, real-time factor, streaming.

    python benchmarks/recognisers.py SHARDS RUN ... [--chunk-ms 320]

For each run folder: test WER in padded batches; real-time factor one utterance at a time on one core (median of three
passes over all of SHARDS); and, where the model streams, the WER of the streamed log-probabilities, whether every text
equals the offline one, their largest difference, and the latency that look-ahead and windows cost.
"""

import argparse
import time
from pathlib import Path

import torch
from common import emit, spread
from torch import Tensor

from asr import checkpoint
from asr.data.corpus import Corpus
from asr.decode.evaluate import evaluate_corpus
from asr.decode.greedy import greedy
from asr.decode.recognizer import Recognizer
from asr.errors import NotStreamable
from asr.metrics.error_rates import Edits, word_edits
from asr.model import SpeechModel

PASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--chunk-ms", type=int, default=320)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in options.runs:
        loaded = checkpoint.load(run)
        recognizer = Recognizer(loaded, "cpu")
        corpus = Corpus.open([options.shards], recognizer.sample_rate_hz)
        evaluation = evaluate_corpus(recognizer, corpus, batch_seconds=200.0)
        texts = [row.hypothesis for row in evaluation.rows]
        emit(
            benchmark="recognisers",
            run=run.name,
            stack=loaded.config.stack.model_dump(),
            seed=loaded.config.seed,
            parameters=sum(p.numel() for p in recognizer.model.parameters()),
            wer=evaluation.words.rate,
            cer=evaluation.characters.rate,
            real_time_factor=real_time_factor(recognizer, corpus),
            streaming=streaming(recognizer, corpus, texts, options.chunk_ms),
        )


def real_time_factor(recognizer: Recognizer, corpus: Corpus) -> dict[str, float]:
    """Seconds of work for a second of audio, utterances alone."""
    audio = [corpus.audio(i) for i in range(len(corpus))]
    factors = []
    for _ in range(PASSES):
        start = time.perf_counter()
        for samples in audio:
            recognizer.transcribe_batch([samples])
        factors.append((time.perf_counter() - start) / corpus.seconds)
    return spread(factors)


@torch.inference_mode()
def streaming(recognizer: Recognizer, corpus: Corpus, offline: list[str], chunk_ms: int) -> dict[str, object]:
    """What comes out if audio comes in chunks; or why it cannot."""
    model = recognizer.model
    try:
        lookahead = model.lookahead_seconds
    except NotStreamable as error:
        return {"refused": str(error)}
    edits, different, largest = Edits(), 0, 0.0
    for index, text in enumerate(offline):
        audio = torch.from_numpy(corpus.audio(index))[None]
        streamed = stream(model, audio, chunk_ms * recognizer.sample_rate_hz // 1000)
        whole, _ = model(audio, torch.tensor([audio.shape[1]]))
        largest = max(largest, float((streamed - whole).abs().max()))
        (path,) = greedy(streamed, torch.tensor([streamed.shape[1]]))
        said = recognizer.tokenizer.decode(path.ids)
        different += said != text
        edits += word_edits(recognizer.tokenizer.normalize(corpus.texts[index]), said)
    return {
        "wer": edits.rate,
        "texts_that_differ": different,
        "largest_difference": largest,
        "lookahead_seconds": lookahead,
        "latency_seconds_without_compute": lookahead + chunk_ms / 1000,
    }


def stream(model: SpeechModel, audio: Tensor, chunk: int) -> Tensor:
    """Log-probabilities (1, S, V) of (1, N) samples that come `chunk` at a time."""
    state, pieces = model.initial_state(1, audio), []
    for start in range(0, audio.shape[1], chunk):
        piece, state = model.step(audio[:, start : start + chunk], state)
        pieces.append(piece)
    return torch.cat([*pieces, model.flush(state)], 1)


if __name__ == "__main__":
    main()
