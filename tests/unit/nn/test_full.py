"""Recurrences with full matrices on a CPU against the equations: the compiled loops and torch's operations."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asr.nn import _numba_calls
from asr.nn.cells import FULL_CELLS, Cell, full, full_on_cpu
from asr.nn.folding import fold_norms
from asr.nn.recurrent_layer import RecurrentLayer
from tests.support import recurrent as slow

KINDS: dict[full.Kind, tuple[Any, int, int]] = {  # step, gates, states
    "tanh": (slow.rnn_tanh, 1, 1),
    "relu": (slow.rnn_relu, 1, 1),
    "clipped_relu": (slow.rnn_clipped_relu, 1, 1),
    "gru_after": (slow.gru_after, 3, 1),
    "gru_before": (slow.gru_before, 3, 1),
    "lstm": (slow.lstm, 4, 2),
}
SIZES = [(1, 1, 1, 1), (2, 4, 3, 70), (1, 3, 15, 33)]  # chains, frames, items, units: more and less than a panel, rows


@pytest.fixture(params=["compiled", "by frame"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by frame":
        monkeypatch.setattr(full_on_cpu, "fits", lambda like: False)
    return request.param


def tensors(kind: full.Kind, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Matrix, c, initial states, projections; the projections as views of a layout with items first."""
    _, gates, states = KINDS[kind]
    chains, frames, batch, size = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    scale = 12.0 if kind == "clipped_relu" else 1.0  # so that some units reach the clip

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    made = [normal(chains, gates * size, size) / size**0.5, normal(chains, size)]
    made += [normal(chains, batch, size) for _ in range(states)]
    made += [scale * normal(batch, frames, gates * size).transpose(0, 1) for _ in range(chains)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def run(kind: full.Kind, weight: Tensor, bias: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Hidden states and last states."""
    number = KINDS[kind][2]
    c = bias if kind == "gru_after" else None
    outputs, last = full.recur(kind, weight, others[:number], others[number:], bias=c)
    return outputs, *last


def by_the_equations(kind: full.Kind, weight: Tensor, bias: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The same, item by item."""
    step, _, number = KINDS[kind]
    cell = SimpleNamespace(recurrent=weight, recurrent_bias=bias.flatten())
    layer: Any = SimpleNamespace(cell=cell, num_directions=len(weight))
    initial, projected = torch.cat(others[:number], -1), others[number:]
    return slow.run_chains(step, layer, initial, projected, num_states=number)


def gradients(kind: full.Kind, results: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum in which every result has weights of its own."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (result * torch.randn(result.shape, dtype=torch.float64, generator=generator)).sum() for result in results
    )
    assert isinstance(loss, Tensor)
    used = inputs if kind == "gru_after" else [inputs[0], *inputs[2:]]
    return torch.autograd.grad(loss, used)


def largest_difference(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Relative to the largest value of each."""
    pairs = list(zip(got, expected, strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float((one - other).detach().abs().max() / (other.detach().abs().max() + 1e-9)) for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("way")
def test_equals_the_equations(kind: full.Kind, sizes: tuple[int, ...]) -> None:
    inputs = tensors(kind, sizes)
    got, expected = run(kind, *inputs), by_the_equations(kind, *inputs)
    if kind == "clipped_relu" and sizes[-1] > 1:
        assert bool((got[0] == full.CLIP).any())
        assert bool((got[0] == 0).any())
    assert largest_difference(got, expected) < 1e-12
    assert largest_difference(gradients(kind, got, inputs), gradients(kind, expected, inputs)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_float32_accuracy(kind: full.Kind) -> None:
    single = tensors(kind, (1, 60, 2, 40), torch.float32)
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    got, expected = run(kind, *single), run(kind, *double)
    assert all(result.dtype == torch.float32 for result in got)
    assert largest_difference(got, expected) < 2e-6
    assert largest_difference(gradients(kind, got, single), gradients(kind, expected, double)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_does_not_depend_on_the_others(kind: full.Kind) -> None:
    """Bit for bit, outputs and gradients, for every place in a batch of 15: by eight, by four, by two, alone."""
    states = KINDS[kind][2]
    inputs = tensors(kind, (2, 5, 15, 70), torch.float32)
    weight, bias, *rest = inputs
    outputs = run(kind, *inputs)[0]
    d_states = torch.autograd.grad(outputs.sum(), rest)
    assert len(rest) == states + 2
    for item in range(15):
        own = [state[:, item : item + 1].detach().requires_grad_() for state in rest[:states]]
        own += [chain[:, item : item + 1].detach().requires_grad_() for chain in rest[states:]]
        alone = run(kind, weight, bias, *own)[0]
        assert torch.equal(alone[:, :, 0], outputs[:, :, item])
        for one, all_items in zip(torch.autograd.grad(alone.sum(), own), d_states, strict=True):
            assert torch.equal(one[:, 0], all_items[:, item])


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_threads_changes_nothing(kind: full.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(kind, (2, 5, 7, 30), torch.float32)
    results = []
    before = torch.get_num_threads()
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        try:
            got = run(kind, *inputs)
            results.append((*got, *gradients(kind, got, inputs)[1:]))  # of the matrix torch's product over all items
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_projections_are_computed_in_float32(kind: full.Kind) -> None:
    """With autocast's bfloat16 or float16 projections: the results for their float32 values, gradients rounded once."""
    number = KINDS[kind][2] + 2
    for narrow in (torch.bfloat16, torch.float16):
        wide = tensors(kind, (2, 6, 2, 20), torch.float32)
        inputs = [*wide[:number], *(chain.detach().to(narrow).requires_grad_() for chain in wide[number:])]
        wide[number:] = [chain.detach().float().requires_grad_() for chain in inputs[number:]]
        got, expected = run(kind, *inputs), run(kind, *wide)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        for one, other in zip(gradients(kind, got, inputs), gradients(kind, expected, wide), strict=True):
            assert torch.equal(one, other.to(one.dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_stays_one(kind: full.Kind, dtype: torch.dtype) -> None:
    """In its item, from its frame on; and nowhere else."""
    inputs = tensors(kind, (1, 4, 3, 20), dtype)
    with torch.no_grad():
        inputs[-1][1, 1, -1] = float("nan")  # frame 1 of item 1, the last unit's last gate
    got = run(kind, *inputs)[0]
    assert got[0, 1, 1, -1].isnan()
    assert got[0, 2:, 1].isnan().all()
    assert got[0, :, ::2].isfinite().all()
    if kind not in ("relu", "clipped_relu"):  # whose slope is 0 wherever nothing above 0 comes out
        assert gradients(kind, (got,), inputs)[-1][1, 1, -1].isnan()


@pytest.mark.parametrize("kind", ["tanh", "gru_after", "gru_before", "lstm"])
@pytest.mark.parametrize("value", [1e4, float("inf"), -float("inf")])
def test_large_values_saturate(kind: full.Kind, value: float) -> None:
    inputs = tensors(kind, (1, 3, 2, 20), torch.float32)
    with torch.no_grad():
        inputs[-1].fill_(value)
    outputs = run(kind, *inputs)[0]
    assert outputs.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(kind, (outputs,), inputs))


@pytest.mark.parametrize(
    ("name", "options"), [("rnn", {}), ("gru", {}), ("gru", {"reset": "before"}), ("lstm", {})], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_cell_gives_the_same(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Its matrix lies packed, in float32; moved to another type, it is packed anew."""
    cell: Cell = FULL_CELLS[name](hidden_size=20, num_chains=2, **options)
    projected = [torch.randn(9, 3, cell.num_gates * 20, dtype=dtype) for _ in range(2)]
    initial = torch.randn(2, 3, cell.num_states * 20, dtype=dtype)
    with torch.no_grad():
        expected = cell.to(dtype).recur(projected, initial)
        fold_norms(RecurrentLayer(6, lambda _: cell.float(), bidirectional=True, merge="sum", normalized=False))
        assert cell.packed is not None
        got = cell.to(dtype).recur(projected, initial)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_exports_as_operations_of_torch(kind: full.Kind) -> None:
    class Layer(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return run(kind, *inputs)[0]

    inputs = tuple(tensor.detach() for tensor in tensors(kind, (1, 3, 2, 4)))
    exported = torch.export.export(Layer(), inputs)
    assert torch.allclose(exported.module()(*inputs), Layer()(*inputs), rtol=0, atol=1e-12)


def test_products_are_counted() -> None:
    inputs = tensors("gru_after", (2, 3, 5, 7), torch.float32)
    with FlopCounterMode(display=False) as counter:
        run("gru_after", *inputs)
    assert counter.get_total_flops() == 2 * 2 * 3 * 5 * 7 * 21
