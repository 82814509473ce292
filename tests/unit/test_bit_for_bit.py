"""On a CPU a recogniser's log-probabilities do not depend on the batch, on how audio was cut, or on threads: no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asr import model
from asr.config import load
from asr.model import SpeechModel
from asr.nn import _numba_calls, products
from asr.nn.folding import fold_norms

RECIPE = Path(__file__).parents[2] / "recipes/librispeech"
STACKS: list[dict[str, Any]] = [
    {"name": "gru", "bidirectional": False, "lookahead_frames": 8},
    {"name": "gru", "bidirectional": False, "reset": "before", "projection_size": 40},
    {"name": "gru"},
    {"name": "lstm", "bidirectional": False, "residual": "projection"},
    {"name": "lstm", "merge": "concat"},
    {"name": "rnn", "bidirectional": False, "batch_norm": "none"},
    {"name": "dilated", "bidirectional": False},
    {"name": "dilated", "cell": "lstm"},
    {"name": "diagonal", "bidirectional": False},
    {"name": "diagonal", "cell": "lstm"},
    {"name": "linear_rnn", "bidirectional": False},
    {"name": "linear_rnn", "cell": "minlstm"},
    {"name": "linear_rnn", "cell": "sru", "bidirectional": False},
    {"name": "hm_lstm"},
    {"name": "hm_lstm", "num_layers": 3, "layer_norm": True, "boundaries": "soft"},
    {"name": "skip"},
    {"name": "skip", "num_layers": 3, "tokens_between_jumps": 2, "max_jumps": 5},
    {"name": "tcn"},
    {"name": "tcn", "padding": "centred", "batch_norm": True},
    {"name": "clockwork", "num_modules": 5},
    {"name": "clockwork", "num_modules": 5, "periods": [1, 2, 3, 3, 4], "learned_initial": True},
    {"name": "phased_lstm", "period_init_high": 3.0, "ratio_on_init": 0.2},
    {"name": "phased_lstm", "period_init_high": 3.0, "ratio_on_init": 0.8, "peepholes": False},
]
SECONDS = (2.1, 1.3, 0.7, 2.1)

pytestmark = pytest.mark.skipif(not products.runs_here(), reason="products are torch's where the processor has no AVX2")


@pytest.fixture(params=STACKS, ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()))
def net(request: pytest.FixtureRequest) -> SpeechModel:
    """With units that are no multiple of a register's, folded as a recogniser folds it."""
    options = [f"stack={request.param['name']}", "stack.num_layers=2", "stack.hidden_size=50"]
    options += [f"stack.{key}={value}" for key, value in request.param.items() if key != "name"]
    config = load(RECIPE, ["model=small", "text.tokenizer=characters", *options])
    torch.manual_seed(0)
    made = model.build(config, 29)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    fold_norms(made)
    return made


def audio(net: SpeechModel) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([int(seconds * net.features.sample_rate_hz) for seconds in SECONDS])
    samples = 0.1 * torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(1))
    for item, length in enumerate(lengths.tolist()):
        samples[item, length:] = 0.5
    return samples, lengths


@torch.inference_mode()
def test_alone_in_a_batch_and_in_pieces(net: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, lengths = audio(net)
    together, frames = net(samples, lengths)
    assert together.std() > 0.05
    for item in range(len(lengths)):
        alone, _ = net(samples[item : item + 1, : lengths[item]], lengths[item : item + 1])
        assert torch.equal(alone[0], together[item, : frames[item]])
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(net(samples, lengths)[0], together)
    finally:
        torch.set_num_threads(before)
    if net.not_streamable:
        return
    for rows in ([0], [0, 3]):
        for chunk in (700, 5000):
            state, pieces = net.initial_state(len(rows), samples), []
            for piece in samples[rows].split(chunk, dim=1):
                out, state = net.step(piece, state)
                pieces.append(out)
            pieces.append(net.flush(state))
            assert torch.equal(torch.cat(pieces, 1), together[rows])
