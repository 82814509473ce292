"""The element-wise recurrences against the equations; under TRITON_INTERPRET=1 the same tests run the GPU's kernels."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asr.nn.cells import elementwise
from tests.support import recurrent as slow

CELLS = {"rnn": (slow.diagonal_rnn, 1, 1), "gru": (slow.diagonal_gru, 3, 1), "lstm": (slow.diagonal_lstm, 4, 2)}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = [(1, 1, 1, 1), (2, 5, 3, 130), (1, 4, 2, 64)]  # chains, frames, items, units: more than a tile, a whole program
compiled_on_cpu = pytest.mark.skipif(INTERPRETED, reason="of the CPU's loops")


@pytest.fixture(params=["compiled", "by frame"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of a recurrence: compiled loops and torch's operations."""
    if request.param == "by frame":
        monkeypatch.setattr(elementwise, "_loops", lambda like: None)
    else:
        loops = elementwise._loops(torch.zeros(1))
        assert loops is not None
        assert loops.__name__.endswith("_triton" if INTERPRETED else "_numba")
    return request.param


def tensors(cell: str, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Weight, initial states, projections; the projections as views of a layout with items first."""
    _, gates, states = CELLS[cell]
    chains, frames, batch, size = sizes
    made = [torch.randn(chains, gates * size, dtype=torch.float64)]
    made += [torch.randn(chains, batch, size, dtype=torch.float64) for _ in range(states)]
    made += [torch.randn(batch, frames, gates * size, dtype=torch.float64).transpose(0, 1) for _ in range(chains)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def run(cell: str, weight: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Hidden states and last states."""
    number = CELLS[cell][2]
    outputs, last = elementwise.recur(cell, weight, others[:number], others[number:])
    return outputs, *last


def by_the_equations(cell: str, weight: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The same, unit vector by unit vector."""
    step, _, number = CELLS[cell]
    layer: Any = SimpleNamespace(cell=SimpleNamespace(recurrent=weight))
    initial, projected = torch.cat(others[:number], -1), others[number:]
    return slow.run_chains(step, layer, initial, projected, num_states=number)


def gradients(results: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum in which every result has weights of its own."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (result * torch.randn(result.shape, dtype=torch.float64, generator=generator)).sum() for result in results
    )
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, inputs)


def assert_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).detach().abs().max()) < tolerance


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("way")
def test_equals_the_equations(cell: str, sizes: tuple[int, ...]) -> None:
    inputs = tensors(cell, sizes)
    got, expected = run(cell, *inputs), by_the_equations(cell, *inputs)
    assert_close(got, expected, 1e-10)
    assert_close(gradients(got, inputs), gradients(expected, inputs), 1e-10)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("frames", [1, 6])
def test_linear_recurrence_equals_its_equation(frames: int) -> None:
    keep, add = (torch.randn(3, frames, 2, 70, dtype=torch.float64).transpose(0, 2) for _ in range(2))
    inputs = [keep.requires_grad_(), add.requires_grad_(), torch.randn(2, 3, 70, dtype=torch.float64).requires_grad_()]
    states = [inputs[2]]
    for t in range(frames):
        states.append(keep[:, t] * states[-1] + add[:, t])
    got, expected = (elementwise.linear_recurrence(keep, add, inputs[2]),), (torch.stack(states[1:], 1),)
    assert_close(got, expected, 1e-10)
    assert_close(gradients(got, inputs), gradients(expected, inputs), 1e-10)


@compiled_on_cpu
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_finite_differences(cell: str) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: run(cell, *inputs), tensors(cell, (2, 3, 2, 2)))
    inputs = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((2, 3, 2, 2),) * 2 + ((2, 2, 2),)]
    assert torch.autograd.gradcheck(elementwise.linear_recurrence, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_accuracy(cell: str) -> None:
    """Outputs to 5e-6, gradients to 1e-5 of the largest, after 100 frames (in Triton's interpreter 10)."""
    single = tensors(cell, (1, 10 if INTERPRETED else 100, 2, 40), torch.float32)
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    with torch.no_grad():  # weights below 1, so that errors do not grow
        single[0].mul_(0.3)
        double[0].copy_(single[0])
    got, expected = run(cell, *single), run(cell, *double)
    assert all(result.dtype == torch.float32 for result in got)
    assert_close(got, expected, 5e-6)
    for one, other in zip(gradients(got, single), gradients(expected, double), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_narrow_projections_are_computed_in_float32(cell: str) -> None:
    """With autocast's bfloat16 or float16 projections: the results for their float32 values, gradients rounded once."""
    number = CELLS[cell][2] + 1
    for narrow in (torch.bfloat16, torch.float16):
        wide = tensors(cell, (2, 6, 2, 20), torch.float32)
        inputs = [*wide[:number], *(chain.detach().to(narrow).requires_grad_() for chain in wide[number:])]
        wide[number:] = [chain.detach().float().requires_grad_() for chain in inputs[number:]]
        got, expected = run(cell, *inputs), run(cell, *wide)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        for one, other in zip(gradients(got, inputs), gradients(expected, wide), strict=True):
            if INTERPRETED and narrow == torch.bfloat16:  # the interpreter cuts off where a GPU rounds
                assert torch.allclose(one.float(), other, rtol=2**-7, atol=0)
            else:
                assert torch.equal(one, other.to(one.dtype))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_stays_one(cell: str, dtype: torch.dtype) -> None:
    inputs = tensors(cell, (1, 4, 2, 20), dtype)
    with torch.no_grad():
        inputs[-1][1, 0, -1] = float("nan")  # frame 1 of item 0, the last unit's last gate
    got = run(cell, *inputs)[0]
    assert got[0, 1, 0, -1].isnan()
    assert int(got.isnan().sum()) == int(got[0, 1:, 0, -1].isnan().sum())
    assert gradients((got,), inputs)[-1][1, 0, -1].isnan()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # NumPy's, in Triton's interpreter
@pytest.mark.parametrize("value", [1e4, float("inf"), -float("inf")])
def test_large_values_saturate(value: float) -> None:
    inputs = tensors("gru", (1, 3, 2, 20), torch.float32)
    with torch.no_grad():
        inputs[-1].fill_(value)
    outputs, _ = run("gru", *inputs)
    assert outputs.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients((outputs,), inputs))


@compiled_on_cpu
@pytest.mark.parametrize("cell", CELLS)
def test_number_of_threads_changes_nothing(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.nn import _numba_calls

    inputs = tensors(cell, (2, 9, 5, 30), torch.float32)
    results = []
    before = torch.get_num_threads()
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        try:
            got = run(cell, *inputs)
            results.append((*got, *gradients(got, inputs)))
        finally:
            torch.set_num_threads(before)
    assert len(results) == 3
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@compiled_on_cpu
def test_exports_as_operations_of_torch() -> None:
    class Layer(torch.nn.Module):
        def forward(self, weight: Tensor, initial: Tensor, projected: Tensor) -> Tensor:
            return elementwise.recur("gru", weight, (initial,), [projected])[0]

    inputs = tuple(tensor.detach() for tensor in tensors("gru", (1, 3, 2, 4)))
    exported = torch.export.export(Layer(), inputs)
    assert torch.allclose(exported.module()(*inputs), Layer()(*inputs), rtol=0, atol=1e-12)


@compiled_on_cpu
def test_importing_the_cells_imports_no_compiler() -> None:
    code = "import sys, asr.nn.cells; sys.exit(bool({'numba', 'asr.nn.cells._triton'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


@compiled_on_cpu
def test_triton_kernels_in_their_interpreter() -> None:
    """This file's other tests, in a process in which Triton interprets: it decides when it is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
