"""The hierarchical multiscale LSTM against the equations of arXiv 1609.01704."""

import pytest
import torch

from asr import stacks
from asr.config.options import validate_stack
from asr.nn import _numba_calls
from asr.nn.cells import full_on_cpu
from asr.nn.folding import fold_norms
from asr.stacks import _hm_lstm_on_cpu
from asr.stacks.hm_lstm import HmLstm
from tests.support.hm_lstm import reference, soft, straight_through

OPTIONS = [
    {},
    {"num_layers": 1},
    {"num_layers": 2, "layer_norm": True},
    {"num_layers": 4},
    {"boundaries": "soft"},
    {"boundaries": "soft", "layer_norm": True},
]
VARIANTS = [
    {},
    {"num_layers": 3, "layer_norm": True},
    {"num_layers": 3, "boundaries": "soft"},
    {"num_layers": 1},
]
EXEMPT = {
    "gradients_are_those_of_finite_differences": "z is a threshold, whose gradient is that of the hard sigmoid and not"
    " its own; held instead: gradcheck with z = p, and the reference's straight-through gradient",
    "bf16_is_close": "a rounded pre-activation near 0 falls on the other side of the threshold; held instead: until the"
    " first boundary that falls otherwise, which was near 0, outputs are close",
}


def make(**options: object) -> HmLstm:
    """A float64 stack of 3 layers of 4 units with large random weights; boundaries are neither rare nor common."""
    torch.manual_seed(1)
    options = {"name": "hm_lstm", "hidden_size": 4, "num_layers": 3, **options}
    stack = stacks.build(validate_stack(options), 5).double()
    assert isinstance(stack, HmLstm)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        for weight, bias in list(zip(stack.weights, stack.biases, strict=True))[:-1]:
            weight[:, -1] *= 3
            bias[-1] = 0
    stack.slope.fill_(0.6)
    return stack


@pytest.fixture(params=["compiled", "by torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by torch":
        monkeypatch.setattr(full_on_cpu, "fits", lambda like: False)
    return request.param


def fix_detectors(stack: HmLstm, *values: float) -> None:
    """Let the detector of each layer have this pre-activation, whatever its input."""
    with torch.no_grad():
        for weight, bias, value in zip(stack.weights, stack.biases, values, strict=False):
            weight[:, -1] = 0
            bias[-1] = value
        stack.projection.weight[-1] = 0


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_equations_and_their_gradients(options: dict[str, object], way: str) -> None:
    """Outputs, boundaries, and the gradient of every parameter and input, straight through the thresholds."""
    stack = make(**options)
    lengths = torch.tensor([17, 6, 11])
    inputs = torch.randn(3, 17, 5, dtype=torch.float64).requires_grad_()
    probe = torch.randn(3, 17, 4, dtype=torch.float64)
    traces = [
        reference(stack, inputs[row, :n], soft if options.get("boundaries") == "soft" else straight_through)
        for row, n in enumerate(lengths)
    ]
    sources = [inputs, *stack.parameters()]
    total = sum((trace.output * probe[row, : len(trace.output)]).sum() for row, trace in enumerate(traces))
    expected = torch.autograd.grad(total, sources)
    out, _ = stack(inputs, lengths)
    actual = torch.autograd.grad((out * probe).sum(), sources)
    boundaries = stack.boundaries(inputs, lengths)
    for row, (trace, n) in enumerate(zip(traces, lengths, strict=True)):
        assert float((out[row, :n] - trace.output).detach().abs().max()) < 1e-10
        assert torch.equal(boundaries[row, :n], trace.boundary > 0.5)
        assert not boundaries[row, n:].any()
    for one, other in zip(expected, actual, strict=True):
        assert float((one - other).abs().max()) < 1e-10
    if stack.num_layers > 1:
        shares = torch.cat([trace.boundary for trace in traces]).mean(0)
        assert bool(((shares > 0.1) & (shares < 0.9)).all())  # all three operations take place
    if stack.num_layers == 3 and not stack.scales:
        pre = torch.cat([trace.pre for trace in traces]) * stack.slope
        assert bool((pre.abs() > 1).any())  # some detectors are saturated and give no gradient
        assert bool((pre.abs() < 1).any())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_gradients_of_the_relaxed_version_are_those_of_finite_differences(layer_norm: bool, way: str) -> None:
    """The way back is one for all kinds of z; with z = p it can be checked against differences, state included."""
    stack = make(boundaries="soft", layer_norm=layer_norm)
    state = stack.step(torch.randn(2, 3, 5, dtype=torch.float64), stack.initial_state(2, torch.zeros(1)))[1]
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    tensors = [tensor.detach().requires_grad_() for tensor in (inputs, *state)]

    def function(chunk: torch.Tensor, *fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, after = stack.step(chunk, type(state)(*fields))
        return out, after.hidden, after.cell

    assert torch.autograd.gradcheck(function, tensors, atol=1e-7)


def test_gradients_with_boundaries_held_fixed_are_those_of_finite_differences() -> None:
    stack = make()
    fix_detectors(stack, 0.0, 0.0)
    stack.slope.fill_(0.0)  # p is 1/2: no gradient through z, and the thresholds alone decide
    drawn = (torch.rand(5, 2, 2, 1) > 0.5).double() * 2 - 1  # below and above p

    def function(chunk: torch.Tensor) -> torch.Tensor:
        return run_with(stack, chunk, drawn)[0]

    inputs = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(run_with(stack, inputs, drawn)[1], (drawn < 0)[..., 0].permute(2, 0, 1).double())
    assert torch.autograd.gradcheck(function, inputs, atol=1e-7)


def run_with(stack: HmLstm, chunk: torch.Tensor, thresholds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give h and z with these thresholds for p, (S, L - 1, B, 1)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "mode", "sample")
        patch.setattr(torch, "rand", lambda *_, **__: thresholds)
        hidden, boundary, _ = stack.train()._run(chunk, stack.initial_state(len(chunk), chunk))
    return hidden, boundary


def test_one_layer_is_torchs_lstm() -> None:
    stack = make(num_layers=1)
    theirs = torch.nn.LSTM(5, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(stack.projection.weight)
        theirs.weight_hh_l0.copy_(stack.weights[0].T)
        theirs.bias_ih_l0.copy_(stack.biases[0])
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    hidden, _, _ = stack._run(inputs, stack.initial_state(2, inputs))
    assert torch.allclose(hidden[:, :, 0], theirs(inputs)[0], rtol=0, atol=1e-12)


def test_without_boundaries_the_layers_above_keep_their_state_bit_for_bit(way: str) -> None:
    stack = make()
    inputs = torch.randn(2, 8, 5, dtype=torch.float64)
    _, state = stack.step(inputs, stack.initial_state(2, inputs))
    assert bool((state.hidden.abs() > 0).all())
    fix_detectors(stack, -1.0, -1.0)
    state = state._replace(boundary=torch.zeros_like(state.boundary))
    _, after = stack.step(inputs, state)
    assert torch.equal(after.hidden[:, 1:], state.hidden[:, 1:])
    assert torch.equal(after.cell[:, 1:], state.cell[:, 1:])
    assert not torch.equal(after.cell[:, 0], state.cell[:, 0])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [3, 21])
@torch.no_grad()
def test_inference_equals_the_equations(options: dict[str, object], size: int, way: str) -> None:
    """Units more and less than a register's, items more and less than a block of rows; state at the end included."""
    stack = make(hidden_size=size, **options)
    for parameter in stack.parameters():
        parameter.mul_((4 / size) ** 0.5)
    inputs, lengths = torch.randn(11, 17, 5, dtype=torch.float64), torch.arange(7, 18)
    detect = soft if options.get("boundaries") == "soft" else straight_through
    traces = [reference(stack, inputs[row, :n], detect) for row, n in enumerate(lengths)]
    out, _ = stack(inputs, lengths)
    boundaries = stack.boundaries(inputs, lengths)
    for row, (trace, n) in enumerate(zip(traces, lengths, strict=True)):
        assert float((out[row, :n] - trace.output).abs().max()) < 1e-12
        assert torch.equal(boundaries[row, :n], trace.boundary > 0.5)
        _, state = stack.step(inputs[row : row + 1, :n], stack.initial_state(1, inputs))
        assert float((state.hidden[0] - trace.hidden[-1]).abs().max()) < 1e-12
        assert float((state.cell[0] - trace.cell[-1]).abs().max()) < 1e-12
        if stack.num_layers > 1:
            assert float((state.boundary[0] - trace.boundary[-1]).abs().max()) < 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_in_float32_an_item_gives_the_same_bits_whatever_stands_beside_it(options: dict[str, object]) -> None:
    stack = make(hidden_size=21, **options).float()
    inputs = torch.randn(11, 30, 5)
    with torch.no_grad():
        together, state = stack.step(inputs, stack.initial_state(11, inputs))
        one_by_one = [stack.step(inputs[i : i + 1], stack.initial_state(1, inputs)) for i in range(11)]
        in_pieces, pieces = stack.initial_state(11, inputs), []
        for piece in inputs.split((1, 7, 2, 20), 1):
            out, in_pieces = stack.step(piece, in_pieces)
            pieces.append(out)
    assert torch.equal(together, torch.cat([out for out, _ in one_by_one]))
    assert torch.equal(together, torch.cat(pieces, 1))
    for whole, piecewise, *alone in zip(state, in_pieces, *(own for _, own in one_by_one), strict=True):
        assert torch.equal(whole, piecewise)
        assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("layer_norm", [False, True])
@torch.no_grad()
def test_number_of_threads_changes_nothing(layer_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the loops compute; the products around them are torch's in training."""
    stack = make(hidden_size=21, layer_norm=layer_norm).float()
    weights, biases, scales = list(stack.weights), list(stack.biases), list(stack.scales)
    projected, d_outputs = torch.randn(30, 11, 85), torch.randn(30, 11, 3, 21)
    thresholds = torch.full((30, 2, 11, 1), 0.5)
    state = (torch.randn(11, 3, 21), torch.randn(11, 3, 21), torch.ones(11, 2))
    loops = _hm_lstm_on_cpu.loops()

    def results() -> list[torch.Tensor]:
        kept = loops.forward(
            projected, state, stack.slope, thresholds, weights, biases, scales, keeps=True, packed=None
        )
        d_gates, d_sums, d_state = loops.backward(d_outputs, state[1], state, stack.slope, weights, scales, kept)
        return [*kept, d_gates, d_sums, *d_state]

    expected = results()
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    assert float(expected[2].mean()) == pytest.approx(0.5, abs=0.3)  # boundaries


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_nan_stays_nan_and_with_its_item(options: dict[str, object], way: str) -> None:
    stack = make(**options)
    inputs, lengths = torch.randn(3, 9, 5, dtype=torch.float64), torch.full((3,), 9)
    clean, _ = stack(inputs, lengths)
    inputs[1, 4, 2] = float("nan")
    out, _ = stack(inputs, lengths)
    assert bool(out[1, 4:].isnan().all())
    out[1, 4:] = clean[1, 4:]
    assert torch.allclose(out, clean, rtol=0, atol=1e-12)


def test_a_stack_that_was_moved_to_another_type_forgets_how_its_weights_were_laid_out() -> None:
    stack = make(hidden_size=21)
    fold_norms(stack)
    inputs, lengths = torch.randn(2, 9, 5, dtype=torch.float64), torch.tensor([9, 9])
    expected = make(hidden_size=21).float().requires_grad_(False)(inputs.float(), lengths)[0]
    with torch.no_grad():
        assert torch.allclose(stack.float()(inputs.float(), lengths)[0], expected, rtol=0, atol=1e-5)


def test_where_boundaries_are_rare_a_layer_changes_only_there() -> None:
    """In the middle of ordinary segments: h of a layer moves exactly where its own or the lower boundary was."""
    stack = make()
    inputs = torch.randn(1, 200, 5, dtype=torch.float64)
    hidden, boundary, _ = stack._run(inputs, stack.initial_state(1, inputs))
    for layer in (1, 2):
        moved = (hidden[0, 1:, layer] != hidden[0, :-1, layer]).any(-1)
        own = boundary[0, :-1, layer] > 0 if layer < 2 else torch.zeros_like(moved)
        assert torch.equal(moved, own | (boundary[0, 1:, layer - 1] > 0))
        assert 0 < int(moved.sum()) < 199


def test_with_boundaries_everywhere_every_frame_flushes() -> None:
    """The cell below the top layer is i g, whatever it was; the top layer, which has no boundary, remembers."""
    stack = make()
    fix_detectors(stack, 1.0, 1.0)
    inputs = torch.randn(2, 8, 5, dtype=torch.float64)
    _, state = stack.step(inputs, stack.initial_state(2, inputs))
    assert bool((state.boundary == 1).all())
    other = state._replace(cell=state.cell + torch.randn_like(state.cell))
    chunk = torch.randn(2, 1, 5, dtype=torch.float64)
    _, after = stack.step(chunk, state)
    _, after_other = stack.step(chunk, other)
    assert torch.equal(after.cell[:, :2], after_other.cell[:, :2])
    assert torch.equal(after.hidden[:, :2], after_other.hidden[:, :2])
    assert not torch.equal(after.cell[:, 2], after_other.cell[:, 2])


def test_it_is_the_boundary_before_that_gates_the_top_down_term() -> None:
    """A boundary in this frame does not let the layer above in; one in the frame before does (a common mistake)."""
    stack = make()
    fix_detectors(stack, 1.0, 1.0)  # z[l, t] = 1 in any case
    inputs = torch.randn(1, 1, 5, dtype=torch.float64)
    state = stack.initial_state(1, inputs)
    above = state.hidden.clone()
    above[:, 1] = 0.5  # h of layer 2 at t - 1

    def first_layer(boundary: float, hidden: torch.Tensor) -> torch.Tensor:
        before = state._replace(hidden=hidden, boundary=torch.full_like(state.boundary, boundary))
        return stack.step(inputs, before)[1].hidden[:, 0]

    assert torch.equal(first_layer(0.0, state.hidden), first_layer(0.0, above))
    assert not torch.equal(first_layer(1.0, state.hidden), first_layer(1.0, above))


def test_the_boundarys_gradient_is_that_of_the_hard_sigmoid() -> None:
    """The output by a detector's pre-activation: by z times a / 2 inside |a pre| < 1, nothing outside."""
    inputs = torch.randn(1, 2, 5, dtype=torch.float64)
    gradients = {}
    for slope, pre in ((1.0, 0.3), (3.0, 0.3), (1.0, 2.0), (3.0, 0.4)):
        stack = make(num_layers=2)
        fix_detectors(stack, pre)
        stack.slope.fill_(slope)
        stack(inputs, torch.tensor([2]))[0].sum().backward()
        gradients[slope, pre] = float(stack.biases[0].grad[-1])
    assert gradients[1.0, 0.3] != 0
    assert gradients[3.0, 0.3] == pytest.approx(3 * gradients[1.0, 0.3], rel=1e-12)
    assert gradients[1.0, 2.0] == 0
    assert gradients[3.0, 0.4] == 0


def test_sampled_boundaries_have_the_detectors_probability() -> None:
    stack = make(num_layers=2, boundaries="sample").train()
    fix_detectors(stack, 0.4)
    stack.slope.fill_(1.0)
    inputs, lengths = torch.zeros(100, 100, 5, dtype=torch.float64), torch.full((100,), 100)
    torch.manual_seed(5)
    first = stack.boundaries(inputs, lengths)
    torch.manual_seed(5)
    assert torch.equal(first, stack.boundaries(inputs, lengths))  # torch's generator alone
    assert float(first.double().mean()) == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 10_000) ** 0.5)
    assert bool(stack.eval().boundaries(inputs, lengths).all())


def test_sampling_ignores_padding() -> None:
    stack = make(boundaries="sample").train()
    inputs, lengths = torch.randn(2, 9, 5, dtype=torch.float64), torch.tensor([9, 4])
    dirty = inputs.clone()
    dirty[1, 4:] = 1e6
    outs = []
    for batch in (inputs, dirty):
        torch.manual_seed(2)
        outs.append(stack(batch, lengths)[0])
    assert torch.equal(*outs)


def test_bf16_is_close_until_a_boundary_near_the_threshold_falls_otherwise() -> None:
    stack = make().float()
    inputs, lengths = torch.randn(40, 25, 5), torch.full((40,), 25)
    exact, _ = stack(inputs, lengths)
    boundaries = stack.boundaries(inputs, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = stack(inputs, lengths)
        other = stack.boundaries(inputs, lengths)
    differs = (boundaries != other).any(-1)
    agreed = ~(differs.cumsum(1) > 0)  # (B, S): no boundary has fallen otherwise yet
    assert float(agreed.double().mean()) > 0.5
    error = (rounded.float() - exact).detach().abs().amax(-1)
    assert float(error[agreed].max()) < 0.05 * float(exact.detach().abs().max())
    assert float(error.max()) > 0
    rows = differs.any(1).nonzero()[:, 0]
    assert len(rows)
    for row in rows:
        first = int(differs[row].nonzero()[0])
        layer = int((boundaries[row, first] != other[row, first]).nonzero()[0])  # a layer above only follows
        assert abs(float(reference(stack, inputs[row, : first + 1]).pre[first, layer].detach())) < 0.05


def test_dropout_leaves_the_states_alone() -> None:
    stack = make(dropout=0.5).train()
    inputs, lengths = torch.randn(2, 30, 5, dtype=torch.float64), torch.tensor([30, 30])
    first, second = stack(inputs, lengths)[0], stack(inputs, lengths)[0]
    assert not torch.equal(first, second)
    _, after = stack.step(inputs, stack.initial_state(2, inputs))
    out, after_without = stack.eval().step(inputs, stack.initial_state(2, inputs))
    assert all(torch.equal(one, other) for one, other in zip(after, after_without, strict=True))
    assert torch.equal(out, stack(inputs, lengths)[0])


def test_slope_annealing() -> None:
    stack = stacks.build(validate_stack({"name": "hm_lstm", "hidden_size": 4}), 5)
    assert isinstance(stack, HmLstm)
    slopes = []
    for epoch in (0, 1, 50, 100, 101, 1000):
        stack.set_epoch(epoch)
        slopes.append(float(stack.state_dict()["slope"]))
    assert slopes == pytest.approx([1.0, 1.04, 3.0, 5.0, 5.0, 5.0])


def test_a_falling_slope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stack.slope_max: got 0.5, expected at least stack.slope_start=1.0"):
        make(slope_max=0.5)
