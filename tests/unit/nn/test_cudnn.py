"""What cuDNN is given is the cell: torch's functional layers, which run on a CPU too, equal our time loops."""

import pytest
import torch
from torch import Tensor

from asr.nn.cells import FULL_CELLS, Cell

BATCH, FRAMES, INPUTS, SIZE, CHAINS = 4, 7, 3, 5, 2


@pytest.mark.parametrize(
    ("name", "options"), [("gru", {}), ("lstm", {}), ("rnn", {"activation": "tanh"}), ("rnn", {"activation": "relu"})]
)
def test_equals_the_time_loop(name: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, last states and all gradients, from a state that does not lie in one piece, as a stream's may not."""
    cell: Cell = FULL_CELLS[name](hidden_size=SIZE, num_chains=CHAINS, **options).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = CHAINS * cell.num_gates * SIZE
    weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((features, INPUTS), (features,)))
    chains = [torch.randn(FRAMES, BATCH, INPUTS, dtype=torch.float64) for _ in range(CHAINS)]
    initial = torch.randn(CHAINS, BATCH, 2, cell.num_states * SIZE, dtype=torch.float64)[:, :, 0]
    inputs = [value.requires_grad_() for value in (weight, bias, initial, *chains)]
    results: list[tuple[Tensor, ...]] = []
    for on_cudnn in (False, True):
        monkeypatch.setattr(cell, "on_cudnn", lambda on=on_cudnn: on)
        if on_cudnn:
            monkeypatch.setattr(cell, "recur", None)
        outputs, last = cell(chains, weight, bias, initial)
        gradients = torch.autograd.grad(outputs.sin().sum() + last.cos().sum(), [*inputs, *cell.parameters()])
        results.append((outputs, last, *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-12
