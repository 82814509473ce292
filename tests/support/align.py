"""Forced alignment from its definition, the best of all paths, one by one; and a small model to align with."""

import itertools
import math
from pathlib import Path

import numpy as np
import torch

from asr import model
from asr.checkpoint import Checkpoint
from asr.config.schema import Config
from asr.text.tokenizer import CharacterTokenizer
from tests.support.ctc import collapse

FORWARD = {"name": "gru", "num_layers": 1, "hidden_size": 12, "bidirectional": False, "lookahead_frames": 3}


def best_path(log_probs: np.ndarray, ids: list[int]) -> tuple[float, tuple[int, ...]]:
    """The most probable of all V ** S paths that collapse to `ids`, and its log-probability; () if there is none."""
    frames, tokens = log_probs.shape
    best: tuple[float, tuple[int, ...]] = (-math.inf, ())
    for path in itertools.product(range(tokens), repeat=frames):
        if collapse(path) == tuple(ids):
            best = max(best, (sum(float(log_probs[t, token]) for t, token in enumerate(path)), path))
    return best


def runs(path: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Tokens of a path (0 is blank), their first frames, and the frames after their last ones."""
    tokens, begins, ends, position = [], [], [], 0
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token:
            tokens.append(token)
            begins.append(position)
            ends.append(position + length)
        position += length
    return tokens, begins, ends


def small_checkpoint(stack: dict[str, object] = FORWARD) -> Checkpoint:
    """An untrained model of English letters with a frame each 40 ms; it spells what noise makes it."""
    layer = {"channels": 3, "time_kernel": 3, "time_stride": 2, "frequency_kernel": 3, "frequency_stride": 2}
    values = {"features": {"num_mels": 12}, "front_end": {"layers": [layer, layer]}, "stack": stack}
    config = Config.model_validate(values)
    tokenizer = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz' ", config.text)
    torch.manual_seed(0)
    module = model.build(config, tokenizer.num_tokens)
    module.features.fit_normalization([0.1 * torch.randn(16_000).numpy()])
    for parameter in module.head.parameters():
        torch.nn.init.normal_(parameter)
    return Checkpoint(module.eval(), config, tokenizer, {}, Path("nowhere"))
