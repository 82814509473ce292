"""The phased LSTM against the paper's equations, its time gate, and what it promises about time."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from asr.nn import _numba_calls, products
from asr.nn.cells import full_on_cpu
from asr.nn.folding import fold_norms
from asr.nn.masking import valid_mask
from asr.stacks.phased_lstm import PhasedLstm, PhasedLstmLayer
from tests.support import phased_lstm as slow

# Of 8 units as many are open at once that no output frame is all 0, which it may be with fewer.
VARIANTS = [
    {"ratio_on_init": 1.0},
    {"ratio_on_init": 0.25, "period_init_low": 0.0, "period_init_high": 1.0},  # folded, it computes open units alone
    {"ratio_on_init": 0.6, "period_init_low": 0.0, "period_init_high": 2.0, "peepholes": False},
]


def make(**options: object) -> PhasedLstm:
    """A stack of float64 weights large enough to matter and of short periods, of which some are negative."""
    torch.manual_seed(1)
    sizes = {"input_size": 5, "hidden_size": 6, "num_layers": 2}
    stack = PhasedLstm(**{**sizes, "period_init_low": 0.5, "period_init_high": 2.0, **options}).double()
    for name, parameter in stack.named_parameters():
        if not name.endswith(("period", "shift", "ratio_on")):
            torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        for layer in stack.layers:
            layer.ratio_on.uniform_(0.2, 0.9)
            layer.period[1] *= -1
            layer.ratio_on[2] *= -1
    return stack


def set_clock(stack: PhasedLstm, period: float | list[float], shift: float, ratio_on: float) -> None:
    with torch.no_grad():
        for layer in stack.layers:
            layer.period.copy_(torch.as_tensor(period))
            layer.shift.fill_(shift)
            layer.ratio_on.fill_(ratio_on)


def irregular(batch: int, num_frames: int) -> torch.Tensor:
    """Ascending random time stamps, the first ones negative."""
    return torch.rand(batch, num_frames, dtype=torch.float64).cumsum(1) * 2 - 3


@pytest.fixture(params=["compiled", "by frame"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of time gate and time loop: compiled, and torch's operations."""
    if request.param == "by frame":
        monkeypatch.setattr(full_on_cpu, "fits", lambda like: False)
    return request.param


def outputs_and_gradients(
    stack: PhasedLstm, inputs: Tensor, lengths: Tensor, times: Tensor | None = None
) -> dict[str, Tensor]:
    """Outputs, and the gradient of every parameter and of the inputs, for a sum with weights of its own."""
    wanted = {"inputs": inputs.detach().requires_grad_(), **dict(stack.named_parameters())}
    out, _ = stack(wanted["inputs"], lengths, times)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    weights = weights * valid_mask(lengths, out.shape[1])[..., None]
    gradients = torch.autograd.grad((out * weights).sum(), list(wanted.values()))
    return {"outputs": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def by_the_equations(stack: PhasedLstm, inputs: Tensor, lengths: Tensor, times: Tensor) -> dict[str, Tensor]:
    """The same by the slow reference, item by item."""
    wanted = {"inputs": inputs.detach().requires_grad_(), **dict(stack.named_parameters())}
    leak = 1e-3 if stack.training else 0.0
    items = [slow.reference(stack, wanted["inputs"][i, :n], times[i, :n], leak) for i, n in enumerate(lengths)]
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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.usefixtures("way")
def test_equals_the_equations(peepholes: bool, timed: bool, training: bool) -> None:
    stack = make(peepholes=peepholes).train(training)
    inputs, lengths = torch.randn(3, 17, 5, dtype=torch.float64), torch.tensor([13, 3, 17])
    times = irregular(3, 17) if timed else None
    stamps = torch.arange(17.0, dtype=torch.float64).expand(3, 17) if times is None else times
    expected = by_the_equations(stack, inputs, lengths, stamps)
    assert_close(outputs_and_gradients(stack, inputs, lengths, times), expected, 1e-12)


@pytest.mark.usefixtures("way")
def test_more_units_and_items_than_are_computed_at_a_time() -> None:
    stack = make(input_size=30, hidden_size=70)
    for layer in stack.layers:
        torch.nn.init.normal_(layer.recurrent, std=0.1)
    inputs, lengths, times = torch.randn(11, 12, 30, dtype=torch.float64), torch.full((11,), 12), irregular(11, 12)
    expected = by_the_equations(stack, inputs, lengths, times)
    assert_close(outputs_and_gradients(stack, inputs, lengths, times), expected, 1e-12)


def test_float32_accuracy() -> None:
    single = make(hidden_size=40).float()
    for layer in single.layers:
        torch.nn.init.normal_(layer.recurrent, std=0.1)
    inputs, lengths = torch.randn(3, 40, 5), torch.tensor([40, 30, 40])
    double = outputs_and_gradients(copy.deepcopy(single).double(), inputs.double(), lengths)
    assert_close(outputs_and_gradients(single, inputs, lengths), double, 1e-5)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast(narrow: torch.dtype) -> None:
    stack = make(hidden_size=40).float()
    for layer in stack.layers:
        torch.nn.init.normal_(layer.recurrent, std=0.1)
    inputs, lengths = torch.randn(3, 40, 5), torch.tensor([40, 30, 40])
    exact = outputs_and_gradients(stack, inputs, lengths)
    with torch.autocast("cpu", dtype=narrow):
        rounded = outputs_and_gradients(stack, inputs, lengths)
    assert_close(rounded, exact, 0.03)
    assert not torch.equal(rounded["outputs"], exact["outputs"])


@pytest.mark.parametrize("timed", [False, True])
def test_number_of_threads_changes_nothing(timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make(hidden_size=70).float()
    inputs, lengths, times = torch.randn(7, 20, 5), torch.full((7,), 20), irregular(7, 20) if timed else None
    results = []
    before = torch.get_num_threads()
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(products, "LARGE", 1)  # projections are torch's where they are small, or torch is fast
    monkeypatch.setattr(products, "torch_is_slow", lambda: True)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        try:
            results.append(outputs_and_gradients(stack, inputs, lengths, times))
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(results[0][name], value), name


@pytest.mark.skipif(not products.runs_here(), reason="products are torch's where the processor has no AVX2")
@pytest.mark.parametrize("few", [False, True])
@torch.inference_mode()
def test_streams_with_time_stamps_give_the_same_bits_together_as_alone(few: bool) -> None:
    """Also where each item has open units of its own, and those alone are computed."""
    stack = make(hidden_size=70).float()
    for layer in stack.layers:
        layer.ratio_on.mul_(0.3 if few else 1.0)
    fold_norms(stack)
    assert all(layer.few_open == few for layer in stack.layers)
    inputs, times, lengths = torch.randn(9, 40, 5), irregular(9, 40), torch.full((9,), 40)
    together, _ = stack(inputs, lengths, times)
    for row in range(9):
        alone, _ = stack(inputs[row : row + 1], lengths[:1], times[row : row + 1])
        assert torch.equal(alone[0], together[row])
    state, pieces = stack.initial_state(9, inputs), []
    for begin, end in ((0, 1), (1, 12), (12, 12), (12, 13), (13, 40)):
        piece, state = stack.step(inputs[:, begin:end], state, times[:, begin:end])
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, 1), together)


@pytest.mark.skipif(not products.runs_here(), reason="products are torch's where the processor has no AVX2")
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("timed", [False, True])
@torch.no_grad()
def test_open_units_alone_give_what_all_give(timed: bool, peepholes: bool) -> None:
    stack = make(hidden_size=40, peepholes=peepholes).eval()
    for layer in stack.layers:
        layer.ratio_on.mul_(0.3)
        torch.nn.init.normal_(layer.recurrent, std=0.1)
    inputs, lengths = torch.randn(6, 60, 5, dtype=torch.float64), torch.tensor([60, 7, 60, 31, 60, 60])
    times = irregular(6, 60) if timed else None
    expected, _ = stack(inputs, lengths, times)
    fold_norms(stack)
    assert all(layer.few_open for layer in stack.layers)
    got, _ = stack(inputs, lengths, times)
    assert float((got - expected).abs().max()) < 1e-13
    assert not torch.equal(got, expected)  # it is another way
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float((stack.float()(inputs.float(), lengths, times)[0] - expected).abs().max()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio_on", [0.1, 0.9])
@torch.no_grad()
def test_a_folded_stack_moved_to_another_type_gives_the_same(ratio_on: float, dtype: torch.dtype) -> None:
    stack = make().float().eval()
    for layer in stack.layers:
        layer.ratio_on.fill_(ratio_on)
    inputs, lengths = torch.randn(3, 17, 5).to(dtype), torch.tensor([13, 3, 17])
    expected, _ = copy.deepcopy(stack).to(dtype)(inputs, lengths)
    fold_norms(stack)
    got, _ = stack.to(dtype)(inputs, lengths)
    assert torch.allclose(got, expected, rtol=0, atol=1e3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("way")
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    """In its item, from its frame on; and nowhere else."""
    stack = make(num_layers=1).to(dtype)
    inputs, lengths = torch.randn(3, 12, 5, dtype=dtype), torch.full((3,), 12)
    inputs[1, 4, 2] = float("nan")
    results = outputs_and_gradients(stack, inputs, lengths)
    assert results["outputs"][1, 4:].isnan().all()
    assert results["outputs"][1, :4].isfinite().all()
    assert results["outputs"][::2].isfinite().all()
    assert all(results[name].isnan().any() for name, _ in stack.named_parameters())
    assert results["inputs"][::2].isfinite().all()


@torch.no_grad()
def test_not_a_number_reaches_open_units_and_then_all() -> None:
    """Where open units alone are computed."""
    stack = make(num_layers=1, hidden_size=40).float().eval()
    stack.layers[0].ratio_on.fill_(0.25)
    fold_norms(stack)
    inputs = torch.randn(3, 60, 5)
    inputs[1, 4, 2] = float("nan")
    out, _ = stack(inputs, torch.full((3,), 60))
    opened = stack.layers[0].time_gate(torch.tensor([[4.0]], dtype=torch.float64))[0, 0] > 0
    assert 0 < int(opened.sum()) < 40
    if stack.layers[0].few_open:
        assert torch.equal(out[1, 4].isnan(), opened)
    assert out[1, -1].isnan().all()
    assert out[::2].isfinite().all()


@pytest.mark.parametrize(("training", "leak"), [(True, 1e-3), (False, 0.0)])
@pytest.mark.usefixtures("way")
def test_the_time_gate_at_the_corners_of_its_phase(training: bool, leak: float) -> None:
    stack = make().train(training)
    set_clock(stack, period=8.0, shift=3.0, ratio_on=0.5)  # open from time 3 to 7 of each 8
    times = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0, 9.0, 11.0, -5.0, 8003.0 + 1.0], dtype=torch.float64)
    expected = [0.0, 0.5, 1.0, 0.5, leak * 0.5, leak * 0.75, 0.0, 0.0, 0.5]
    layer = stack.layers[0]
    gate = layer.time_gate(times[:, None])
    assert gate.shape == (9, 1, 6)
    assert torch.allclose(gate[:, 0], torch.tensor(expected, dtype=torch.float64)[:, None].expand(9, 6), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.usefixtures("way")
def test_always_open_it_is_a_plain_lstm(training: bool) -> None:
    stack = make(num_layers=1, peepholes=False).train(training)
    set_clock(stack, period=1.0, shift=0.0, ratio_on=1.0)
    times = torch.arange(9, dtype=torch.float64).expand(2, 9) + 0.5  # half-way through every period
    layer = stack.layers[0]
    assert bool((layer.time_gate(times.T) == 1).all())
    theirs = torch.nn.LSTM(5, 6, batch_first=True).double()

    def reordered(weight: torch.Tensor) -> torch.Tensor:  # g, i, f, o -> i, f, g, o
        g, i, f, o = weight.chunk(4)
        return torch.cat((i, f, g, o))

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(reordered(layer.projection.weight))
        theirs.bias_ih_l0.copy_(reordered(layer.projection.bias))
        theirs.weight_hh_l0.copy_(reordered(layer.recurrent))
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    ours, _ = stack(inputs, torch.tensor([9, 9]), times)
    assert torch.allclose(ours, theirs(inputs)[0], rtol=0, atol=1e-12)


def test_a_shift_of_all_times_by_the_period_changes_nothing() -> None:
    stack = make()
    set_clock(stack, period=[1.0, 2.0, 4.0, 8.0, 1.0, 2.0], shift=0.3, ratio_on=0.5)
    inputs, lengths, times = torch.randn(2, 20, 5, dtype=torch.float64), torch.tensor([20, 20]), irregular(2, 20)
    usual, _ = stack(inputs, lengths, times)
    assert torch.allclose(stack(inputs, lengths, times + 8.0)[0], usual, rtol=0, atol=1e-10)
    assert not torch.allclose(stack(inputs, lengths, times + 4.0)[0], usual, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_a_closed_unit_keeps_its_state_bit_for_bit_in_evaluation() -> None:
    stack = make(num_layers=1).float().eval()
    layer = stack.layers[0]
    out, _ = stack(torch.randn(2, 50, 5), torch.tensor([50, 50]))
    closed = layer.time_gate(torch.arange(50, dtype=torch.float64)[:, None])[1:, 0] == 0  # (S - 1, H)
    assert 0.1 < float(closed.float().mean()) < 0.9
    same = out[:, 1:] == out[:, :-1]
    assert bool(same[:, closed].all())
    assert not bool(same[:, ~closed].any())


@pytest.mark.parametrize("age", [360_000, 10**9])
@pytest.mark.usefixtures("way")
def test_the_phase_is_right_in_long_streams(age: int) -> None:
    """Of float32 weights too, at frames that float32 cannot divide by a period: compared with exact fractions."""
    torch.manual_seed(1)
    layer = PhasedLstmLayer(
        5, 40, peepholes=True, period_init_low=0.5, period_init_high=3.0, shift_init_high=0.0, ratio_on_init=0.5
    ).eval()
    gate = layer.time_gate(torch.arange(age, age + 20).double()[:, None])[:, 0]
    for t, row in zip(range(age, age + 20), gate, strict=True):
        for value, period, shift in zip(row.tolist(), layer.period.tolist(), layer.shift.tolist(), strict=True):
            phase = float((Fraction(t) - Fraction(shift)) / Fraction(period) % 1)
            expected = 4 * phase if phase < 0.25 else max(0.0, 2 - 4 * phase)
            assert abs(value - expected) < 2e-6


@pytest.mark.parametrize("age", [0, 10**12])
def test_a_stream_of_any_age_is_at_the_times_that_its_frames_count(age: int) -> None:
    stack = make().eval()
    inputs = torch.randn(1, 30, 5, dtype=torch.float64)
    offline, _ = stack(inputs, torch.tensor([30]), torch.arange(age, age + 30).double()[None])
    state = stack.initial_state(1, inputs)
    state = state._replace(next_frame=state.next_frame + age)
    first, state = stack.step(inputs[:, :7], state)
    second, state = stack.step(inputs[:, 7:], state)
    assert torch.allclose(torch.cat((first, second), 1), offline, rtol=0, atol=1e-12)
    assert state.next_frame.dtype == torch.int64
    assert state.next_frame.tolist() == [age + 30]


def test_chunks_with_time_stamps_equal_the_whole() -> None:
    stack = make().eval()
    inputs, times = torch.randn(2, 30, 5, dtype=torch.float64), irregular(2, 30)
    offline, _ = stack(inputs, torch.tensor([30, 30]), times)
    state, pieces = stack.initial_state(2, inputs), []
    for begin, end in ((0, 1), (1, 12), (12, 12), (12, 30)):
        piece, state = stack.step(inputs[:, begin:end], state, times[:, begin:end])
        pieces.append(piece)
    assert torch.allclose(torch.cat(pieces, 1), offline, rtol=0, atol=1e-12)


def test_time_stamps_in_padding_are_irrelevant() -> None:
    stack = make().float()
    inputs, times, lengths = torch.randn(2, 20, 5), irregular(2, 20), torch.tensor([20, 8])
    gradients = []
    for garbage in (0.0, 1e300):
        times[1, 8:] = garbage
        stack.zero_grad()
        stack(inputs, lengths, times)[0].sum().backward()
        gradients.append([parameter.grad.clone() for parameter in stack.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_parameters_start_as_in_the_paper() -> None:
    stack = PhasedLstm(input_size=40, hidden_size=400, num_layers=1)
    layer = stack.layers[0]
    log_period = layer.period.detach().log()
    assert 0.999 < float(log_period.min()) < 1.2
    assert 5.8 < float(log_period.max()) < 6.001
    share = (layer.shift / layer.period).detach()
    assert 0.0 <= float(share.min()) < 0.1
    assert 0.9 < float(share.max()) <= 1.0
    assert bool((layer.ratio_on == 0.05).all())
    assert stack.figures() == {"open_units_share": pytest.approx(0.05)}
    for weight in (layer.projection.weight, layer.recurrent, layer.peepholes):
        assert abs(float(weight.detach().std()) - 0.1) < 0.01
    bias = layer.projection.bias.view(4, 400)
    assert bool((bias[1] == -0.1).all())
    assert bool((bias[[0, 2, 3]] == 0).all())


def test_shifts_start_in_a_given_time() -> None:
    shift = PhasedLstm(input_size=4, hidden_size=400, num_layers=1, shift_init_high=100.0).layers[0].shift.detach()
    assert 0.0 <= float(shift.min()) < 2.0
    assert 98.0 < float(shift.max()) <= 100.0


def test_wrong_options_and_times_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stack.period_init_low: got 3.0, expected at most stack.period_init_high=2"):
        make(period_init_low=3.0)
    inputs = torch.zeros(2, 9, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"times: got shape \(2, 8\), expected that of the frames, \(2, 9\)"):
        make()(inputs, torch.tensor([9, 9]), torch.zeros(2, 8))
