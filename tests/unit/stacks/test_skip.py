"""LSTM-Jump against its description, its gradient against all sequences of jumps, and the stack that skims."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr import stacks
from asr.config.options import validate_stack
from asr.nn import _numba_calls
from asr.nn.cells import full_on_cpu
from asr.stacks.skip import Skip, SkipTrace, reinforce_loss
from tests.support.skip import reference

VARIANTS = [
    {},
    {"tokens_between_jumps": 3, "max_jump": 4, "num_layers": 1},
    {"tokens_between_jumps": 2, "max_jump": 3, "max_jumps": 4},
]
EXEMPT = {
    "lookahead_is_what_it_says": "a frame that is skipped changes no output; held instead: a frame that is read changes"
    " its own output, and none changes an earlier one",
}
SETTINGS: list[dict[str, object]] = [
    {},
    {"num_layers": 1, "max_jump": 1},
    {"tokens_between_jumps": 3, "max_jump": 7},
    {"tokens_between_jumps": 2, "max_jump": 3, "max_jumps": 2},
    {"max_jump": 3, "max_jumps": 8, "num_layers": 3},
]


def make(**options: object) -> Skip:
    """A float64 stack of 4 units with large random weights, whose jumps differ from frame to frame."""
    torch.manual_seed(1)
    stack = stacks.build(validate_stack({"name": "skip", "hidden_size": 4, "num_layers": 2, **options}), 5).double()
    assert isinstance(stack, Skip)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    with torch.no_grad():
        for layer in stack.layers:
            layer.projection.weight.mul_(2)
        stack.policy.weight.mul_(8)
        stack.policy.bias.zero_()
    return stack


@pytest.fixture(params=["compiled", "by torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by torch":
        monkeypatch.setattr(full_on_cpu, "fits", lambda like: False)
    return request.param


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(4, 30, 5, generator=generator, dtype=torch.float64), torch.tensor([30, 1, 17, 22])


def parameters_of_the_lstm(stack: Skip) -> list[torch.nn.Parameter]:
    return list(stack.layers.parameters())


@pytest.mark.parametrize("options", SETTINGS)
def test_the_stack_equals_the_description(options: dict[str, object], way: str) -> None:
    stack = make(**options)
    inputs, lengths = batch()
    out, _ = stack(inputs, lengths)
    with torch.no_grad():
        out_without_gradient, _ = stack(inputs, lengths)
    skipped, kinds = 0, set()
    for row, n in enumerate(lengths):
        reading = reference(stack, inputs[row, :n], stops=False)
        assert float((out[row, :n] - reading.outputs).detach().abs().max()) < 1e-10
        assert float((out_without_gradient[row, :n] - reading.outputs).detach().abs().max()) < 1e-12
        skipped += int(n) - len(reading.positions)
        kinds |= set(reading.jumps)
    if stack.policy.out_features > 2:
        assert skipped > 0
        assert len(kinds) > 1


@pytest.mark.parametrize("options", SETTINGS)
def test_reading_equals_the_description_and_its_gradients(options: dict[str, object]) -> None:
    """By the most probable jumps, and by random ones."""
    stack = make(**options)
    inputs, lengths = batch()
    largest = stack.policy.out_features - 1
    given = torch.randint(0, largest + 1, (4, 30), generator=torch.Generator().manual_seed(3))
    for jumps in (None, given):
        trace = stack.read(inputs, lengths, sample=False, jumps=jumps)
        readings = [
            reference(stack, inputs[row, :n], stops=True, jumps=None if jumps is None else jumps[row].tolist())
            for row, n in enumerate(lengths)
        ]
        for row, reading in enumerate(readings):
            decisions = len(reading.jumps)
            assert int(trace.frames_read[row]) == len(reading.positions)
            assert trace.decided[row].tolist() == [i < decisions for i in range(trace.decided.shape[1])]
            assert trace.jumps[row, :decisions].tolist() == reading.jumps
            assert torch.equal(trace.log_probs[row, decisions:], torch.zeros_like(trace.log_probs[row, decisions:]))
            for one, other in zip(trace.log_probs[row], reading.log_probs, strict=False):
                assert float((one - other).detach().abs()) < 1e-10
            assert float((trace.hidden[row] - reading.hidden).detach().abs().max()) < 1e-10
        sources = [*parameters_of_the_lstm(stack), *stack.policy.parameters()]
        ours = torch.autograd.grad(trace.log_probs.sum() + trace.hidden.sum(), sources)
        total = sum(sum(reading.log_probs) + reading.hidden.sum() for reading in readings)
        for one, other in zip(ours, torch.autograd.grad(total, sources), strict=True):
            assert float((one - other).abs().max()) < 1e-10


def test_jumps_count_from_the_position_after_the_reading() -> None:
    """R = 1: a jump of x_0 from index 0 lands on x_(x_0), as the number prediction task wants it (arXiv 1704.06877)."""
    stack = make(max_jump=9, max_jumps=1, num_layers=1)
    inputs = torch.randn(9, 12, 5, dtype=torch.float64)
    jumps = torch.arange(1, 10)[:, None]
    trace = stack.read(inputs, torch.full((9,), 12), sample=False, jumps=jumps)
    assert trace.frames_read.tolist() == [2] * 9
    for row, x_0 in enumerate(jumps[:, 0].tolist()):
        two = torch.stack((inputs[row, 0], inputs[row, x_0]))
        only = stack.read(two[None], torch.tensor([2]), sample=False, jumps=torch.tensor([[1]]))
        assert torch.allclose(trace.hidden[row], only.hidden[0], rtol=0, atol=1e-12)


def test_jumps_count_from_the_position_after_the_reading_of_several() -> None:
    """R = 3, jumps of 2: frames 0 1 2, 4 5 6, 8 9 10 are read."""
    stack = make(tokens_between_jumps=3, num_layers=1)
    inputs = torch.randn(1, 11, 5, dtype=torch.float64)
    trace = stack.read(inputs, torch.tensor([11]), sample=False, jumps=torch.tensor([[2, 2]]))
    read = inputs[:, [0, 1, 2, 4, 5, 6, 8, 9, 10]]
    straight = stack.read(read, torch.tensor([9]), sample=False, jumps=torch.tensor([[1, 1]]))
    assert int(trace.frames_read) == 9
    assert torch.allclose(trace.hidden, straight.hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_stack_that_never_jumps_is_torchs_lstm(num_layers: int) -> None:
    """So is a fresh one, whose jumps are equally probable."""
    stack = make(num_layers=num_layers, tokens_between_jumps=2)
    torch.nn.init.zeros_(stack.policy.weight)
    torch.nn.init.zeros_(stack.policy.bias)
    theirs = torch.nn.LSTM(5, 4, num_layers, batch_first=True).double()
    with torch.no_grad():
        for k, layer in enumerate(stack.layers):
            getattr(theirs, f"weight_ih_l{k}").copy_(layer.projection.weight)
            getattr(theirs, f"bias_ih_l{k}").copy_(layer.projection.bias)
            getattr(theirs, f"weight_hh_l{k}").copy_(layer.cell.recurrent[0])
            getattr(theirs, f"bias_hh_l{k}").zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    expected = theirs(inputs)[0]
    out, _ = stack(inputs, torch.tensor([9, 9]))
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        stack.policy.bias[1] = 1.0
    trace = stack.read(inputs, torch.tensor([9, 6]), sample=False)
    assert torch.allclose(trace.hidden, torch.stack((expected[0, 8], expected[1, 5])), rtol=0, atol=1e-12)
    assert trace.frames_read.tolist() == [9, 6]


@pytest.mark.parametrize("baseline_weight", [0.0, 0.7])
def test_reinforce_is_on_average_the_exact_gradient(baseline_weight: float) -> None:
    """Three tokens, jumps of 0..2: its mean over all sequences of jumps is the expected reward's gradient."""
    stack = make(max_jump=2)
    pairs = torch.tensor(list(itertools.product(range(3), repeat=2)))
    inputs = torch.randn(1, 3, 5, dtype=torch.float64).expand(len(pairs), 3, 5)
    trace = stack.read(inputs, torch.full((len(pairs),), 3), sample=False, jumps=pairs)
    made = [tuple(jumps[decided].tolist()) for jumps, decided in zip(trace.jumps, trace.decided, strict=True)]
    rows = [made.index(sequence) for sequence in sorted(set(made))]
    assert [made[row] for row in rows] == [(0,), (1, 0), (1, 1), (1, 2), (2,)]
    probabilities = trace.log_probs.sum(1).exp()[rows]
    assert float(probabilities.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    rewards = torch.randn(len(pairs), dtype=torch.float64)
    sources = [*parameters_of_the_lstm(stack), *stack.policy.parameters()]
    exact = torch.autograd.grad((probabilities * rewards[rows]).sum(), sources, retain_graph=True)
    loss = reinforce_loss(trace, rewards, baseline_weight)[rows]
    estimate = torch.autograd.grad((probabilities.detach() * loss).sum(), sources)
    assert max(float(gradient.abs().max()) for gradient in exact) > 1e-3
    for one, other in zip(exact, estimate, strict=True):
        assert float((one + other).abs().max()) < 1e-12


def test_reinforce_loss_by_hand() -> None:
    stack = make(max_jump=2)
    trace = stack.read(*batch(), sample=False, jumps=torch.ones(4, 30, dtype=torch.int64))
    rewards = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss = reinforce_loss(trace, rewards, baseline_weight=0.3)
    for row, reward in enumerate(rewards):
        terms = [
            -float(log_p) * float(reward - b) + 0.3 * float(reward - b) ** 2
            for log_p, b, decided in zip(
                trace.log_probs[row].detach(), trace.baselines[row].detach(), trace.decided[row], strict=True
            )
            if decided
        ]
        assert float(loss[row].detach()) == pytest.approx(sum(terms), rel=1e-12)
    assert float(loss[1].detach()) == 0  # a single frame: nothing to decide


def test_the_baseline_sends_no_gradient_into_the_lstm() -> None:
    stack = make()
    trace = stack.read(*batch(), sample=True)
    reinforce_loss(
        trace._replace(log_probs=trace.log_probs.detach()), torch.ones(4, dtype=torch.float64)
    ).sum().backward()
    assert all(p.grad is None for p in parameters_of_the_lstm(stack))
    assert all(p.grad is not None and bool((p.grad != 0).all()) for p in stack.baseline.parameters())


def test_jumps_are_drawn_by_their_probability_from_torchs_generator() -> None:
    stack = make(max_jump=3, max_jumps=1)
    with torch.no_grad():
        stack.policy.weight.zero_()
        stack.policy.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    inputs, lengths = torch.randn(1, 6, 5, dtype=torch.float64).expand(10_000, 6, 5), torch.full((10_000,), 6)
    torch.manual_seed(4)
    jumps = stack.read(inputs, lengths, sample=True).jumps[:, 0]
    torch.manual_seed(4)
    assert torch.equal(jumps, stack.read(inputs, lengths, sample=True).jumps[:, 0])
    for jump, probability in enumerate((0.1, 0.2, 0.3, 0.4)):
        share = float((jumps == jump).double().mean())
        assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 10_000) ** 0.5)


def test_a_jump_without_probability_is_not_drawn() -> None:
    stack = make(max_jump=3, max_jumps=1)
    with torch.no_grad():
        stack.policy.weight.zero_()
        stack.policy.bias.copy_(torch.tensor([-1e9, 0.0, -1e9, 0.0]))
    inputs = torch.randn(1, 6, 5, dtype=torch.float64).expand(10_000, 6, 5)
    assert set(stack.read(inputs, torch.full((10_000,), 6), sample=True).jumps[:, 0].tolist()) == {1, 3}


def test_a_drawn_reading_is_what_its_jumps_say() -> None:
    stack = make(max_jump=3)
    inputs, lengths = batch()
    drawn = stack.read(inputs, lengths, sample=True)
    again = stack.read(inputs, lengths, sample=False, jumps=drawn.jumps)
    for one, other in zip(drawn, again, strict=True):
        assert torch.equal(one, other)


def test_too_few_jumps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"jumps: got 1 for each item, expected one for each decision"):
        make().read(*batch(), sample=False, jumps=torch.ones(4, 1, dtype=torch.int64))


def test_padding_is_never_read() -> None:
    stack = make()
    inputs, lengths = batch()
    dirty = inputs.clone()
    for row, n in enumerate(lengths):
        dirty[row, n:] = float("nan")
    for one, other in zip(stack.read(inputs, lengths, False), stack.read(dirty, lengths, False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", SETTINGS)
def test_each_item_reads_as_if_it_were_alone(options: dict[str, object]) -> None:
    stack = make(**options)
    inputs, lengths = batch()
    together = stack.read(inputs, lengths, sample=False)
    for row, n in enumerate(lengths):
        alone = stack.read(inputs[row : row + 1, :n], lengths[row : row + 1], sample=False)
        assert torch.equal(alone.frames_read[0], together.frames_read[row])
        assert torch.allclose(alone.hidden[0], together.hidden[row], rtol=0, atol=1e-12)
        out, _ = stack(inputs[row : row + 1, :n], lengths[row : row + 1])
        assert torch.allclose(out[0], stack(inputs, lengths)[0][row, :n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", SETTINGS)
def test_streaming_equals_offline_with_jumps_that_differ(options: dict[str, object]) -> None:
    """The contract's stacks have one jump for all frames: there the policy's weights are still 0."""
    stack = make(**options)
    inputs = torch.randn(2, 40, 5, dtype=torch.float64)
    offline, _ = stack(inputs, torch.tensor([40, 40]))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, 12), max_size=12))
    def check(sizes: list[int]) -> None:
        state, pieces, position = stack.initial_state(2, inputs), [], 0
        for size in [*sizes, 40]:
            piece, state = stack.step(inputs[:, position : position + size], state)
            pieces.append(piece)
            position = min(40, position + size)
        assert torch.allclose(torch.cat(pieces, 1), offline, rtol=0, atol=1e-12)

    check()


@pytest.mark.parametrize("options", SETTINGS)
@torch.no_grad()
def test_in_float32_an_item_gives_the_same_bits_whatever_stands_beside_it(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More units than a register's, more items than a block of rows, that come to their ends one after the other."""
    stack = make(hidden_size=21, **options).float()
    inputs, lengths = torch.randn(11, 60, 5), torch.arange(10, 65, 5)
    together, _ = stack(inputs, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, _ = stack(inputs[row : row + 1, :n], lengths[row : row + 1])
        assert torch.equal(alone[0], together[row, :n])
        state, pieces = stack.initial_state(1, inputs), []
        for piece in inputs[row : row + 1, :n].split(7, 1):
            out, state = stack.step(piece, state)
            pieces.append(out)
        assert torch.equal(torch.cat(pieces, 1), alone)
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(stack(inputs, lengths)[0], together)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_a_frame_of_nan_is_nan_from_there_on_and_the_next_frame_is_read(way: str) -> None:
    """As torch has it, the largest of NaNs is the first: a jump of 0, which counts as 1."""
    stack = make()
    inputs, lengths = torch.randn(3, 40, 5, dtype=torch.float64), torch.full((3,), 40)
    clean, _ = stack(inputs, lengths)
    position = reference(stack, inputs[1], stops=False).positions[5]
    inputs[1, position, 2] = float("nan")
    out, _ = stack(inputs, lengths)
    assert bool(out[1, position:].isnan().all())
    out[1, position:] = clean[1, position:]
    assert torch.allclose(out, clean, rtol=0, atol=1e-12)
    _, state = stack.step(inputs, stack.initial_state(3, inputs))
    assert int(state.num_jumps[1]) == 6 + 40 - position - 1


def test_a_frame_changes_outputs_from_its_own_on_if_it_is_read() -> None:
    stack = make(tokens_between_jumps=2)
    inputs = torch.randn(1, 40, 5, dtype=torch.float64)
    length = torch.tensor([40])
    offline, _ = stack(inputs, length)
    positions = reference(stack, inputs[0], stops=False).positions
    assert 10 < len(positions) < 40
    for t in range(40):
        changed = inputs.clone()
        changed[:, t] += 1.0
        moved = (stack(changed, length)[0] != offline).any(-1)[0]
        if t in positions:
            assert int(moved.nonzero()[0]) == t
        else:
            assert not moved.any()


def test_gradients_with_jumps_that_differ_are_those_of_finite_differences() -> None:
    """Decisions are far from a tie, so that differences leave them as they are."""
    stack = make(tokens_between_jumps=2, max_jump=3)
    inputs, lengths = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True), torch.tensor([9, 6])
    assert len(reference(stack, inputs.detach()[0], stops=False).positions) < 9
    assert torch.autograd.gradcheck(lambda x: stack(x, lengths)[0], inputs, atol=1e-7)


def test_in_training_every_parameter_has_a_gradient_and_the_policys_is_zero() -> None:
    stack = make().train()
    out, _ = stack(*batch())
    out.sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
    for parameter in (*stack.policy.parameters(), *stack.baseline.parameters()):
        assert bool((parameter.grad == 0).all())
    for parameter in parameters_of_the_lstm(stack):
        assert bool((parameter.grad != 0).any())


def test_dropout_is_on_outputs_alone_and_a_skipped_frame_repeats_it() -> None:
    stack = make(dropout=0.5).train()
    inputs, lengths = torch.randn(1, 40, 5, dtype=torch.float64), torch.tensor([40])
    dropped, trace = stack.skim(inputs, lengths, sample=False)
    whole, trace_without = stack.eval().skim(inputs, lengths, sample=False)
    assert torch.equal(trace.log_probs, trace_without.log_probs)
    positions = reference(stack, inputs[0], stops=False).positions
    kept = dropped != 0
    assert 0.3 < float(kept[0, positions].double().mean()) < 0.7
    assert torch.allclose(dropped, torch.where(kept, 2 * whole, 0.0), rtol=0, atol=1e-12)
    for before, t in itertools.pairwise(range(40)):
        assert t in positions or torch.equal(dropped[0, t], dropped[0, before])


def test_skimming_trains_the_policy() -> None:
    """A reward for each frame skipped makes a fresh policy skip more: the gradient points there."""
    torch.manual_seed(0)
    stack = stacks.build(validate_stack({"name": "skip", "hidden_size": 8, "num_layers": 1, "max_jump": 3}), 5)
    assert isinstance(stack, Skip)
    inputs, lengths = torch.randn(64, 30, 5), torch.full((64,), 30)
    optimiser = torch.optim.Adam(stack.parameters(), 0.03)
    shares = []
    for _ in range(40):
        outputs, trace = stack.skim(inputs, lengths, sample=True)
        assert outputs.shape == (64, 30, 8)
        shares.append(float(trace.frames_read.float().mean()) / 30)
        optimiser.zero_grad()
        reinforce_loss(trace, 1 - trace.frames_read / 30).mean().backward()
        optimiser.step()
    assert shares[0] > 0.5
    assert shares[-1] < 0.37
    assert float(stack.skim(inputs, lengths, sample=False)[1].frames_read.float().mean()) == 10  # every third


def test_bf16_is_close_as_long_as_the_jumps_agree() -> None:
    """The contract's stacks have one jump for all frames; here a rounded state may be followed by another jump."""
    stack = make().float()
    inputs, lengths = torch.randn(40, 25, 5), torch.full((40,), 25)
    exact, trace = stack.skim(inputs, lengths, sample=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, other = stack.skim(inputs, lengths, sample=False)
    assert rounded.dtype == torch.float32
    width = min(trace.jumps.shape[1], other.jumps.shape[1])
    same = (trace.frames_read == other.frames_read) & (trace.jumps[:, :width] == other.jumps[:, :width]).all(1)
    assert int(same.sum()) > 20
    assert float((exact - rounded)[same].detach().abs().max()) < 0.05 * float(exact.detach().abs().max())


def test_symbols_are_embedded_where_they_are_read_and_nowhere_else() -> None:
    stack = make(tokens_between_jumps=2, max_jumps=2)
    embedding = torch.nn.Embedding(7, 5).double()
    symbols = torch.randint(7, (4, 12), generator=torch.Generator().manual_seed(1))
    lengths, jumps = torch.tensor([12, 9, 5, 1]), torch.tensor([[2, 3], [1, 0], [3, 3], [1, 1]])
    embedded: list[int] = []

    def embed(read: Tensor) -> Tensor:
        embedded.append(read.numel())
        return embedding(read)

    def gradient(trace: SkipTrace) -> Tensor:
        (found,) = torch.autograd.grad((trace.hidden.square().sum() + trace.log_probs.sum()), embedding.weight)
        return found

    all_at_once = stack.read(embedding(symbols), lengths, sample=False, jumps=jumps)
    by_read = stack.read(symbols, lengths, sample=False, jumps=jumps, embed=embed)
    for one, other in zip(all_at_once, by_read, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(gradient(all_at_once), gradient(by_read), rtol=1e-12, atol=1e-14)
    turns = int(by_read.frames_read.max())
    assert embedded == [4] * turns + [4 * turns]
