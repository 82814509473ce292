"""The clockwork RNN against the paper's equations, and what its clocks promise."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asr.nn import _numba_calls, products
from asr.nn.cells import full_on_cpu
from asr.nn.folding import fold_norms
from asr.nn.masking import valid_mask
from asr.stacks.clockwork import Clockwork
from tests.support import clockwork as slow

VARIANTS = [
    {"num_modules": 4},
    {"num_modules": 2, "periods": [1, 3], "learned_initial": True},
    {"num_modules": 4, "periods": [1, 2, 3, 3]},  # not nested
]

CLOCKS = [(), (1, 1, 1), (1, 3, 6), (2, 4, 4), (1, 2, 3), (2, 3, 5)]


def make(**options: object) -> Clockwork:
    """A stack of float64 weights large enough to matter."""
    torch.manual_seed(1)
    stack = Clockwork(**{"input_size": 5, "hidden_size": 6, "num_layers": 2, "num_modules": 3, **options}).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return stack


@pytest.fixture(params=["compiled", "by frame"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of the time loop: compiled, and torch's operations."""
    if request.param == "by frame":
        monkeypatch.setattr(full_on_cpu, "fits", lambda like: False)
    return request.param


def outputs_and_gradients(stack: Clockwork, inputs: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradient of every parameter and of the inputs, for a sum with weights of its own."""
    wanted = {"inputs": inputs.detach().requires_grad_(), **dict(stack.named_parameters())}
    out, _ = stack(wanted["inputs"], lengths)
    weights = (
        torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        * valid_mask(lengths, out.shape[1])[..., None]
    )
    gradients = torch.autograd.grad((out * weights).sum(), list(wanted.values()))
    return {"outputs": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def by_the_equations(stack: Clockwork, inputs: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """The same by the slow reference, item by item."""
    wanted = {"inputs": inputs.detach().requires_grad_(), **dict(stack.named_parameters())}
    items = [slow.reference(stack, wanted["inputs"][i, :n]) for i, n in enumerate(lengths)]
    out = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((out * weights).sum(), list(wanted.values()))
    return {"outputs": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest value of each."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float(value.abs().max()) > 0, name
        assert float((got[name] - value).abs().max() / value.abs().max()) < tolerance, name


@pytest.mark.parametrize("learned_initial", [False, True])
@pytest.mark.parametrize("periods", CLOCKS)
@pytest.mark.usefixtures("way")
def test_equals_the_equations(periods: tuple[int, ...], learned_initial: bool) -> None:
    stack = make(periods=periods, learned_initial=learned_initial)
    inputs, lengths = torch.randn(3, 17, 5, dtype=torch.float64), torch.tensor([13, 3, 17])
    assert_close(outputs_and_gradients(stack, inputs, lengths), by_the_equations(stack, inputs, lengths), 1e-12)


@pytest.mark.usefixtures("way")
def test_modules_wider_than_a_panel_in_a_batch_of_more_than_a_block() -> None:
    stack = make(input_size=30, hidden_size=120, num_modules=2)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs, lengths = torch.randn(11, 30, 30, dtype=torch.float64), torch.full((11,), 30)
    assert_close(outputs_and_gradients(stack, inputs, lengths), by_the_equations(stack, inputs, lengths), 1e-12)


def test_float32_accuracy() -> None:
    single = make(hidden_size=60).float()
    for parameter in single.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs, lengths = torch.randn(3, 40, 5), torch.tensor([40, 30, 40])
    double = outputs_and_gradients(copy.deepcopy(single).double(), inputs.double(), lengths)
    assert_close(outputs_and_gradients(single, inputs, lengths), double, 1e-5)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("periods", [(1, 2, 4), (2, 4, 4)])
def test_gradients_under_autocast(narrow: torch.dtype, periods: tuple[int, ...]) -> None:
    stack = make(periods=periods, hidden_size=60).float()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs, lengths = torch.randn(3, 40, 5), torch.tensor([40, 30, 40])
    exact = outputs_and_gradients(stack, inputs, lengths)
    with torch.autocast("cpu", dtype=narrow):
        rounded = outputs_and_gradients(stack, inputs, lengths)
    assert_close(rounded, exact, 0.03)
    assert not torch.equal(rounded["outputs"], exact["outputs"])


@pytest.mark.parametrize("periods", [(1, 2, 4), (2, 3, 5)])
def test_number_of_threads_changes_nothing(periods: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make(periods=periods, hidden_size=150).float()
    inputs, lengths = torch.randn(7, 20, 5), torch.full((7,), 20)
    results = []
    before = torch.get_num_threads()
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(products, "LARGE", 1)  # projections are torch's where they are small, or torch is fast
    monkeypatch.setattr(products, "torch_is_slow", lambda: True)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        try:
            results.append(outputs_and_gradients(stack, inputs, lengths))
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(results[0][name], value), name


@pytest.mark.skipif(not products.runs_here(), reason="products are torch's where the processor has no AVX2")
@pytest.mark.parametrize("periods", [(1, 2, 4), (2, 3, 5)])
@torch.inference_mode()
def test_streams_of_any_age_give_the_same_bits_together_as_alone(periods: tuple[int, ...]) -> None:
    stack = make(periods=periods, hidden_size=150).float()
    fold_norms(stack)
    inputs, ages = torch.randn(9, 40, 5), torch.tensor([0, 3, 3, 7, 1, 12, 20, 5, 8])
    offline, _ = stack(inputs, torch.full((9,), 40))
    for row in range(9):
        alone, _ = stack(inputs[row : row + 1], torch.tensor([40]))
        assert torch.equal(alone[0], offline[row])
    states = [
        stack.step(inputs[row : row + 1, :age], stack.initial_state(1, inputs))[1] for row, age in enumerate(ages)
    ]
    state = type(states[0])(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    for start, end in ((0, 1), (1, 2), (2, 9), (9, 20)):
        chunk = torch.stack([inputs[row, age + start : age + end] for row, age in enumerate(ages)])
        out, state = stack.step(chunk, state)
        for row, age in enumerate(ages):
            assert torch.equal(out[row], offline[row, age + start : age + end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_stack_gives_the_same(dtype: torch.dtype) -> None:
    """Its matrices lie packed, in float32; moved to another type, they are packed anew."""
    stack = make().float()
    inputs, lengths = torch.randn(3, 17, 5).to(dtype), torch.tensor([13, 3, 17])
    with torch.no_grad():
        expected, _ = copy.deepcopy(stack).to(dtype)(inputs, lengths)
        fold_norms(stack)
        assert stack.layers[0].packed is not None
        assert torch.equal(stack.to(dtype)(inputs, lengths)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    """In its item, from its frame on; and nowhere else."""
    stack = make(num_layers=1).to(dtype)
    inputs, lengths = torch.randn(3, 12, 5, dtype=dtype), torch.full((3,), 12)
    inputs[1, 4, 2] = float("nan")
    results = outputs_and_gradients(stack, inputs, lengths)
    assert results["outputs"][1, 4:, :2].isnan().all()  # the others do not read the fastest module
    assert results["outputs"][1, 4:].isnan().all()
    assert results["outputs"][1, :4].isfinite().all()
    assert results["outputs"][::2].isfinite().all()
    assert all(results[name].isnan().any() for name, _ in stack.named_parameters() if name != "layers.0.initial")
    assert results["inputs"][::2].isfinite().all()


def test_all_periods_1_are_a_plain_rnn_with_a_triangular_matrix() -> None:
    stack = make(periods=(1, 1, 1), num_layers=1)
    layer = stack.layers[0]
    theirs = torch.nn.RNN(5, 6, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.projection.weight)
        theirs.bias_ih_l0.copy_(layer.projection.bias)
        theirs.weight_hh_l0.copy_(layer.recurrent_matrix())
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    ours, _ = stack(inputs, torch.tensor([9, 9]))
    assert torch.allclose(ours, theirs(inputs)[0], rtol=0, atol=1e-12)


def test_the_matrix_stays_triangular_after_updates() -> None:
    stack = make(num_layers=1)
    layer = stack.layers[0]
    assert sum(block.numel() for block in layer.recurrent) == 2**2 * 3 * 4 // 2  # k^2 g (g + 1) / 2
    below = torch.arange(6)[:, None] // 2 > torch.arange(6) // 2
    before = layer.recurrent_matrix()[~below].detach().clone()
    optimizer = torch.optim.AdamW(stack.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        inputs = torch.randn(2, 9, 5, dtype=torch.float64)
        loss = stack(inputs, torch.tensor([9, 9]))[0].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = layer.recurrent_matrix()
    assert bool((after[below] == 0).all())
    assert bool((after[~below] != before).all())


def test_slow_modules_do_not_read_fast_ones() -> None:
    stack = make(num_layers=1).eval()
    inputs = torch.randn(1, 12, 5, dtype=torch.float64)
    fast = stack.initial_state(1, inputs)
    fast.hidden[..., :2] += 1.0
    slow_ones = stack.initial_state(1, inputs)
    slow_ones.hidden[..., 4:] += 1.0
    usual, _ = stack.step(inputs, stack.initial_state(1, inputs))
    assert torch.equal(stack.step(inputs, fast)[0][..., 2:], usual[..., 2:])
    assert bool((stack.step(inputs, slow_ones)[0] != usual).all())


@pytest.mark.parametrize("periods", [(1, 2, 4), (1, 2, 3)])
@pytest.mark.usefixtures("way")
def test_the_state_of_a_module_that_does_not_run_is_bit_identical(periods: tuple[int, ...]) -> None:
    stack = make(periods=periods, num_layers=1).float()
    out, _ = stack(torch.randn(2, 25, 5), torch.tensor([25, 25]))
    for i, period in enumerate(periods):
        rows = out[:, :, 2 * i : 2 * i + 2]
        for t in range(1, 25):
            same = rows[:, t] == rows[:, t - 1]
            assert bool(same.all() if t % period else not same.any()), (period, t)


def test_the_age_counts_modulo_the_cycle_of_all_clocks() -> None:
    stack = make(periods=(1, 2, 3))
    state = stack.initial_state(2, torch.zeros(1, dtype=torch.float64))
    for _ in range(5):
        _, state = stack.step(torch.randn(2, 7, 5, dtype=torch.float64), state)
    assert state.age.dtype == torch.int64
    assert state.age.tolist() == [35 % 6] * 2


@pytest.mark.parametrize("ages", [(0, 5), (3, 3)])
@pytest.mark.usefixtures("way")
def test_streams_of_any_ages_run_as_each_would_alone(ages: tuple[int, int]) -> None:
    """By torch's operations of different ages through the masked loop, of one age through the prefix: they agree."""
    stack = make(periods=(1, 2, 6)).eval()
    inputs = torch.randn(2, 30, 5, dtype=torch.float64)
    offline, _ = stack(inputs, torch.tensor([30, 30]))
    states = [
        stack.step(inputs[row : row + 1, :age], stack.initial_state(1, inputs))[1] for row, age in enumerate(ages)
    ]
    state = type(states[0])(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    chunk = torch.stack([inputs[row, age : age + 20] for row, age in enumerate(ages)])
    out, _ = stack.step(chunk, state)
    for row, age in enumerate(ages):
        assert torch.allclose(out[row], offline[row, age : age + 20], rtol=0, atol=1e-12)


def test_only_the_frames_of_its_clock_cost_multiplications() -> None:
    """A mean frame multiplies 1 + 1/2 + 1/4 + 1/8 of a module's rows, forward and backward."""
    stack = make(num_modules=4, hidden_size=8, num_layers=1)
    assert stack.figures() == {"active_units_share": (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4}
    inputs = torch.randn(1, 16, 5, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        stack(inputs, torch.tensor([16]))[0].sum().backward()
    rows = 16 * 2 * (1 + 1 / 2 + 1 / 4 + 1 / 8)
    # Two operations a multiply-add. For 5 inputs: product, their gradient, the weight's gradient. For 8 states
    # likewise, but the counter does not know the in-place product that their gradient is.
    assert counter.get_total_flops() == 2 * rows * (3 * 5 + 2 * 8)


def test_all_parameters_start_normal_with_deviation_a_tenth() -> None:
    stack = Clockwork(input_size=40, hidden_size=64, num_layers=1, learned_initial=True)
    values = torch.cat([parameter.detach().flatten() for parameter in stack.parameters()])
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 0.1) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_modules": 4}, r"stack.num_modules: got 4 with stack.hidden_size=6"),
        ({"periods": (1, 2)}, r"stack.periods: got \[1, 2\], expected as many as stack.num_modules=3"),
        ({"periods": (4, 2, 1)}, r"stack.periods: got \[4, 2, 1\], .* ascending"),
        ({"num_modules": 64, "hidden_size": 64}, r"stack.num_modules: got clocks .* 9223372036854775808 frames"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
