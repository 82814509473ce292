"""Other people's beam searches, run by the interpreter of an environment that has them; `benchmarks/beam.py` drives it.

Standard input: one JSON object a line. The first says what to build, the others {"peer": NAME, "item": I}; to each,
one JSON line on standard output.
"""

# pyright: reportMissingImports=false

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def flashlight(job: dict, *, pruned: bool):
    """Lexicon decoder with KenLM; scores of KenLM are log10."""
    from flashlight.lib.text.decoder import (
        CriterionType,
        LexiconDecoder,
        LexiconDecoderOptions,
        SmearingMode,
        Trie,
    )
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    tokens = job["tokens"]
    space = tokens.index(" ")
    words = Dictionary(["<unk>", *job["words"]])
    lm = KenLM(job["arpa"], words)
    trie, start = Trie(len(tokens), space), lm.start(False)
    for word in job["words"]:
        index = words.get_index(word)
        spelled = [tokens.index(letter) for letter in word] + [space]
        trie.insert(spelled, index, lm.score(start, index)[1])
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=job["beam_size"],
        beam_size_token=10 if pruned else len(tokens),
        beam_threshold=25.0 if pruned else 1e9,
        lm_weight=job["alpha"] * math.log(10),
        word_score=job["beta"],
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=True,
        criterion_type=CriterionType.CTC,
    )
    decoder = LexiconDecoder(options, trie, lm, space, 0, words.get_index("<unk>"), [], False)

    def decode(log_probs: np.ndarray) -> str:
        best = decoder.decode(log_probs.ctypes.data, *log_probs.shape)[0]
        return " ".join(words.get_entry(i) for i in best.words if i >= 0)

    return decode


def torchaudio(job: dict):
    """torchaudio.models.decoder.ctc_decoder, with the defaults of its tutorial but for the weights."""
    import torch
    from torchaudio.models.decoder import ctc_decoder

    tokens = ["-", *("|" if token == " " else token for token in job["tokens"][1:])]
    with tempfile.TemporaryDirectory() as folder:
        lexicon = Path(folder) / "lexicon.txt"
        lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in job["words"]))
        decoder = ctc_decoder(
            lexicon=str(lexicon),
            tokens=tokens,
            lm=job["arpa"],
            beam_size=job["beam_size"],
            lm_weight=job["alpha"] * math.log(10),
            word_score=job["beta"],
            log_add=True,
            blank_token="-",
            sil_token="|",
        )
    return lambda log_probs: " ".join(decoder(torch.from_numpy(log_probs)[None])[0][0].words)


def pyctcdecode(job: dict):
    """With its defaults, but for the weights."""
    from pyctcdecode import build_ctcdecoder

    decoder = build_ctcdecoder(
        ["", *job["tokens"][1:]], job["arpa"], job["words"], alpha=job["alpha"], beta=job["beta"]
    )
    return lambda log_probs: decoder.decode(log_probs, beam_width=job["beam_size"])


PEERS = {
    "flashlight": lambda job: flashlight(job, pruned=False),
    "flashlight pruned": lambda job: flashlight(job, pruned=True),
    "torchaudio": torchaudio,
    "pyctcdecode": pyctcdecode,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print is no answer
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    items = [np.ascontiguousarray(item) for item in np.load(job["matrices"])]
    built, missing = {}, {}
    for name, build in PEERS.items():
        try:
            built[name] = build(job)
        except (ImportError, AttributeError, RuntimeError) as error:  # torchaudio raises the latter two
            missing[name] = str(error)
    print(json.dumps(missing), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        decode, item = built[request["peer"]], items[request["item"]]
        start = time.perf_counter()
        text = decode(item)
        print(json.dumps({"seconds": time.perf_counter() - start, "text": text}), file=answers, flush=True)


if __name__ == "__main__":
    main()
