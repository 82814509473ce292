"""The clockwork RNN against the paper's equations, and what its clocks promise."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asr.nn.masking import valid_mask
from asr.stacks.clockwork import Clockwork
from tests.support import clockwork as slow

VARIANTS = [
    {"num_modules": 4},
    {"num_modules": 2, "periods": [1, 3], "learned_initial": True},
    {"num_modules": 4, "periods": [1, 2, 3, 3]},  # not nested: the masked loop
]

CLOCKS = [(), (1, 1, 1), (1, 3, 6), (2, 4, 4), (1, 2, 3), (2, 3, 5)]


def make(**options: object) -> Clockwork:
    """A stack of float64 weights large enough to matter."""
    torch.manual_seed(1)
    stack = Clockwork(**{"input_size": 5, "hidden_size": 6, "num_layers": 2, "num_modules": 3, **options}).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return stack


@pytest.mark.parametrize("learned_initial", [False, True])
@pytest.mark.parametrize("periods", CLOCKS)
def test_equals_the_equations(periods: tuple[int, ...], learned_initial: bool) -> None:
    """Outputs, and the gradient of every parameter and input."""
    stack = make(periods=periods, learned_initial=learned_initial)
    lengths = torch.tensor([13, 3, 17])
    inputs = torch.randn(3, 17, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 17, 6, dtype=torch.float64) * valid_mask(lengths, 17)[..., None]
    out, _ = stack(inputs, lengths)
    items = [slow.reference(stack, inputs[i, :n]) for i, n in enumerate(lengths)]
    for row, item in enumerate(items):
        assert float((out[row, : len(item)] - item).detach().abs().max()) < 1e-10
    wanted = {"inputs": inputs, **dict(stack.named_parameters())}
    ours = torch.autograd.grad((out * weights).sum(), list(wanted.values()))
    loss = sum((item * weights[row, : len(item)]).sum() for row, item in enumerate(items))
    theirs = torch.autograd.grad(loss, list(wanted.values()))
    for name, a, b in zip(wanted, ours, theirs, strict=True):
        assert float((a - b).abs().max()) < 1e-10, name
        assert float(b.abs().max()) > 0, name


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
def test_streams_of_any_ages_run_as_each_would_alone(ages: tuple[int, int]) -> None:
    """Of different ages through the masked loop, of one age through the prefix: the two agree."""
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
