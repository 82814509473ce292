"""The contracts of docs/adding-a-stack.md, for every stack that is there, in every configuration that matters."""

import copy
import importlib
import importlib.util
import pickle
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import stacks
from asr.config.options import names, validate_stack
from asr.errors import NotStreamable
from asr.nn.folding import fold_norms
from asr.stacks.base import Stack, State

INPUT_SIZE = 6
SIZES: dict[str, object] = {"hidden_size": 8, "num_layers": 2}


def own_tests(name: str) -> ModuleType | None:
    """tests/unit/stacks/test_NAME.py, where a stack has one.

    It may hold VARIANTS, the options to run the contracts with (none: the defaults), and EXEMPT, contract -> reason,
    for a contract that cannot hold for this stack; such a test is skipped with that reason.
    """
    module = f"tests.unit.stacks.test_{name}"
    return importlib.import_module(module) if importlib.util.find_spec(module) else None


def configurations() -> list[dict[str, object]]:
    """Each stack's variants; a stack without any is tested as its defaults make it."""
    return [
        {"name": name, **SIZES, **variant} for name in names() for variant in getattr(own_tests(name), "VARIANTS", [{}])
    ]


def label(options: dict[str, object]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.fixture(params=configurations(), ids=label)
def stack(request: pytest.FixtureRequest) -> Stack:
    """A float64 stack in eval mode whose running statistics are not the initial ones."""
    contract = request.function.__name__.removeprefix("test_")
    reason = getattr(own_tests(request.param["name"]), "EXEMPT", {}).get(contract)
    if reason:
        pytest.skip(reason)
    torch.manual_seed(3)
    module = stacks.build(validate_stack(request.param), INPUT_SIZE).double()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.uniform_(0.5, 1.5) if "variance" in name else buffer.normal_()
        for name, parameter in module.named_parameters():
            if any(part in name for part in ("scale", "shift", "bias", "tops")):  # what starts as 0, 1 or the identity
                parameter.normal_()
    return module.eval()


def batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(lengths), max(lengths), INPUT_SIZE, generator=generator, dtype=torch.float64)
    return inputs, torch.tensor(lengths)


def leaves(state: State) -> Iterator[torch.Tensor]:
    """The tensors of a state, in order."""
    for field in state:
        if isinstance(field, torch.Tensor):
            yield field
        else:
            yield from leaves(field)


def joined(*states: State) -> State:
    """States of several streams as one: every tensor joined along its first axis."""
    fields = [
        torch.cat(parts) if isinstance(parts[0], torch.Tensor) else joined(*parts)
        for parts in zip(*states, strict=True)
    ]
    return type(states[0])(*fields) if hasattr(states[0], "_fields") else tuple(fields)


def test_there_are_stacks() -> None:
    assert "gru" in names()


def test_shape_and_zero_padding(stack: Stack) -> None:
    inputs, lengths = batch([7, 1, 12])
    out, out_lengths = stack(inputs, lengths)
    assert out.shape == (3, int(out_lengths.max()), stack.output_size)
    for row, length in enumerate(out_lengths):
        assert bool((out[row, length:] == 0).all())
        assert bool((out[row, :length].abs().sum(-1) > 0).all())


def test_batch_invariance(stack: Stack) -> None:
    lengths = [180, 1, 97, 33]
    inputs, _ = batch(lengths)
    together, _ = stack(inputs, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, alone_lengths = stack(inputs[row : row + 1, :length], torch.tensor([length]))
        assert torch.allclose(alone[0], together[row, : alone_lengths[0]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_padding_garbage_is_irrelevant(stack: Stack, training: bool) -> None:
    for module in stack.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stack.train(training)
    inputs, lengths = batch([9, 4, 6])
    clean, _ = stack(inputs.clone(), lengths)
    for row, length in enumerate(lengths):
        inputs[row, length:] = 1e6
    dirty, _ = stack(inputs, lengths)
    assert torch.equal(clean, dirty)


def test_statistics_ignore_padding(stack: Stack) -> None:
    stack.train()
    inputs, lengths = batch([9, 4, 6])
    before = {name: buffer.clone() for name, buffer in stack.named_buffers()}
    stack(inputs, lengths)
    first = {name: buffer.clone() for name, buffer in stack.named_buffers()}
    stack.load_state_dict(before, strict=False)
    longer = torch.nn.functional.pad(inputs, (0, 0, 0, 20), value=7.0)
    stack(longer, lengths)
    for name, buffer in stack.named_buffers():
        assert torch.allclose(first[name], buffer, rtol=0, atol=1e-12), name


def test_gradients_are_those_of_finite_differences(stack: Stack) -> None:
    for module in stack.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stack.train()
    inputs, lengths = batch([4, 2])
    inputs.requires_grad_()
    parameters = {name: p for name, p in stack.named_parameters() if p.numel() < 200}
    assert parameters

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        out, _ = torch.func.functional_call(
            stack, dict(zip(parameters, values, strict=True)), (x, lengths), tie_weights=False
        )
        return out

    # Training mode updates buffers only, which the outputs do not depend on. The step is about float64's cube root of
    # epsilon, where a central difference's truncation and rounding errors meet.
    assert torch.autograd.gradcheck(function, (inputs, *parameters.values()), eps=1e-5, atol=1e-7)


def test_bf16_is_close(stack: Stack) -> None:
    stack = stack.float()
    inputs, lengths = batch([30, 12])
    exact, _ = stack(inputs.float(), lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = stack(inputs.float(), lengths)
    scale = float(exact.detach().abs().max())
    assert float((rounded.float() - exact).detach().abs().max()) < 0.05 * scale
    assert not torch.equal(rounded.float(), exact)


def test_streaming_equals_offline_or_says_why_not(stack: Stack) -> None:
    if stack.lookahead_frames is None:
        assert stack.not_streamable
        with pytest.raises(NotStreamable, match=r"(?i)stream"):
            stack.initial_state(1, torch.zeros(1, dtype=torch.float64))
        return
    inputs, lengths = batch([60])
    offline, _ = stack(inputs, lengths)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, 25), max_size=12))
    def check(sizes: list[int]) -> None:
        state = stack.initial_state(1, inputs)
        pieces, position = [], 0
        for size in [*sizes, 60]:
            piece, state = stack.step(inputs[:, position : position + size], state)
            pieces.append(piece)
            position = min(60, position + size)
        pieces.append(stack.flush(state))
        assert torch.allclose(torch.cat(pieces, 1), offline, rtol=0, atol=1e-10)

    check()


@torch.no_grad()
def test_folding_norms_changes_nothing(stack: Stack) -> None:
    inputs, lengths = batch([11, 7])
    folded = copy.deepcopy(stack)
    fold_norms(folded)
    # Matrix products may round differently where the copy's memory is aligned otherwise.
    assert torch.allclose(stack(inputs, lengths)[0], folded(inputs, lengths)[0], rtol=0, atol=1e-14)
    if stack.lookahead_frames is not None:
        before = stack.step(inputs, stack.initial_state(2, inputs))[0]
        assert torch.allclose(before, folded.step(inputs, folded.initial_state(2, inputs))[0], rtol=0, atol=1e-14)


def test_lookahead_is_what_it_says(stack: Stack) -> None:
    """Output t changes with input t + lookahead_frames and with no later one."""
    if stack.lookahead_frames is None:
        pytest.skip("needs the whole utterance: every output depends on every input")
    inputs, lengths = batch([40])
    offline, _ = stack(inputs, lengths)
    changed = inputs.clone()
    changed[:, 20] += 1.0
    other, _ = stack(changed, lengths)
    first = int((other != offline).any(-1)[0].nonzero()[0])
    assert first == 20 - stack.lookahead_frames


def test_memory_is_what_it_says(stack: Stack) -> None:
    """Output t changes with input t - past_frames and with no earlier one."""
    if stack.past_frames is None:
        pytest.skip("remembers everything")
    length = stack.past_frames + 30
    inputs, lengths = batch([length])
    offline, _ = stack(inputs, lengths)
    changed = inputs.clone()
    changed[:, 20] += 1.0
    other, _ = stack(changed, lengths)
    last = int((other != offline).any(-1)[0].nonzero()[-1])
    assert last == 20 + stack.past_frames


def test_streams_batch_and_fork(stack: Stack) -> None:
    if stack.lookahead_frames is None:
        pytest.skip("does not stream")
    inputs, _ = batch([30, 30], seed=4)
    _, first = stack.step(inputs[:1, :11], stack.initial_state(1, inputs))
    _, second = stack.step(inputs[1:, :6], stack.initial_state(1, inputs))
    second = pickle.loads(pickle.dumps(stack.step(inputs[1:, 6:11], second)[1]))  # noqa: S301 -- our own
    saved = [tensor.clone() for tensor in leaves(second)]
    assert all(tensor.shape[0] == 1 for tensor in saved)
    once, after = stack.step(inputs[1:, 11:], second)
    again, _ = stack.step(inputs[1:, 11:], second)  # the state given in is not changed
    assert torch.equal(once, again)
    assert all(torch.equal(a, b) for a, b in zip(saved, leaves(second), strict=True))
    both, state = stack.step(inputs[:, 11:], joined(first, second))
    assert torch.allclose(both[1:], once, rtol=0, atol=1e-10)
    assert torch.allclose(stack.flush(state)[1:], stack.flush(after), rtol=0, atol=1e-10)


def test_streams_of_different_age_batch(stack: Stack) -> None:
    """A stream that has heard 11 frames and one that has heard 4 go on together as each would alone."""
    if stack.lookahead_frames is None:
        pytest.skip("does not stream")
    inputs, _ = batch([30, 30], seed=4)
    states, alone = [], []
    for row, age in ((0, 11 + stack.lookahead_frames), (1, 4 + stack.lookahead_frames)):
        _, state = stack.step(inputs[row : row + 1, :age], stack.initial_state(1, inputs))
        states.append(state)
        alone.append(stack.step(inputs[row : row + 1, age : age + 9], state)[0])
    ages = (11 + stack.lookahead_frames, 4 + stack.lookahead_frames)
    chunk = torch.cat([inputs[row : row + 1, age : age + 9] for row, age in enumerate(ages)])
    together, _ = stack.step(chunk, joined(*states))
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-10)
