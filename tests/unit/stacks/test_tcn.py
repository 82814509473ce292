"""The temporal convolutional network against the paper's equations and against torch's own layers."""

from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from asr.stacks.tcn import Tcn
from tests.support import tcn as slow

VARIANTS = [
    {"kernel_size": 3},
    {"kernel_size": 4, "dropout": 0.5, "dropout_kind": "element"},
    {"kernel_size": 3, "batch_norm": True},
    {"kernel_size": 3, "padding": "centred", "dropout": 0.5},
    {"kernel_size": 3, "padding": "centred", "batch_norm": True},
    {"kernel_size": 5, "padding": "centred", "num_layers": 1, "hidden_size": 6},
]


def random_stack(*, input_size: int = 5, hidden_size: int = 4, num_layers: int = 3, **options: object) -> Tcn:
    """A float64 stack none of whose parameters or statistics is what it starts with."""
    torch.manual_seed(1)
    stack = Tcn(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, **options).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.7)
    for name, buffer in stack.named_buffers():
        buffer.uniform_(0.5, 1.5) if "variance" in name else buffer.normal_()
    return stack


def streamed(stack: Tcn, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Outputs for `inputs` in chunks of these sizes and of what is left."""
    state, pieces = stack.initial_state(len(inputs), inputs), []
    for chunk in inputs.split([*sizes, inputs.shape[1] - sum(sizes)], dim=1):
        piece, state = stack.step(chunk, state)
        pieces.append(piece)
    return torch.cat([*pieces, stack.flush(state)], dim=1)


def max_error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("padding", "kernel_size", "input_size"),
    [("causal", 2, 5), ("causal", 3, 4), ("centred", 3, 5), ("centred", 5, 4), ("centred", 1, 5)],
)
def test_equals_the_equations(
    padding: str, kernel_size: int, input_size: int, training: bool, batch_norm: bool
) -> None:
    stack = random_stack(input_size=input_size, kernel_size=kernel_size, padding=padding, batch_norm=batch_norm)
    stack.train(training)
    lengths = torch.tensor([12, 3, 17])
    inputs = torch.randn(3, 17, input_size, dtype=torch.float64)
    out, _ = stack(inputs, lengths)
    expected = slow.reference(stack, [inputs[i, :n] for i, n in enumerate(lengths)])
    for row, item in enumerate(expected):
        assert max_error(out[row, : len(item)], item) < 1e-10


def test_the_papers_code_agrees() -> None:
    """Its block: weight-normed Conv1d, padded on both sides, the frames too many cut off ("chomp")."""
    stack = random_stack(input_size=5, hidden_size=6, num_layers=4, kernel_size=3)
    inputs = torch.randn(2, 40, 5, dtype=torch.float64)
    hidden = inputs.mT
    for index, block in enumerate(stack.blocks):
        mixed = hidden
        for ours in (block.first, block.second):
            pad = 2 * 2**index
            conv = nn.Conv1d(mixed.shape[1], 6, 3, dilation=2**index, padding=pad, dtype=torch.float64)
            conv = nn.utils.parametrizations.weight_norm(conv)
            with torch.no_grad():
                conv.parametrizations.weight.original0.copy_(ours.gain)
                conv.parametrizations.weight.original1.copy_(ours.weight.mT)
                conv.bias.copy_(ours.bias)
            mixed = torch.relu(conv(mixed)[..., :-pad])
        around = hidden if block.around is None else block.around(hidden.mT).mT
        hidden = torch.relu(mixed + around)
    out, _ = stack(inputs, torch.tensor([40, 40]))
    assert max_error(out, hidden.mT) < 1e-10


@torch.no_grad()
def test_starts_as_the_published_results_did() -> None:
    """Convolutions have torch's default, not N(0, 0.01), which weight norm undoes; only the 1x1 one has that."""
    torch.manual_seed(1)
    stack = Tcn(input_size=100, hidden_size=80, num_layers=2, kernel_size=5)
    torch.manual_seed(1)
    theirs = nn.Conv1d(100, 80, 5)
    first = stack.blocks[0].first
    weight, bias = first.folded()
    assert float(weight.std()) == pytest.approx(float(theirs.weight.std()), rel=0.02)
    assert float(weight.abs().max()) == pytest.approx(float(theirs.weight.abs().max()), rel=0.001)
    assert float(bias.abs().max()) == pytest.approx(float(theirs.bias.abs().max()), rel=0.1)
    assert torch.allclose(weight, first.weight, rtol=0, atol=1e-7)
    assert float(stack.blocks[0].around.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert stack.blocks[1].around is None


@pytest.mark.parametrize("kind", ["channel", "element"])
def test_dropout_is_of_its_kind(kind: str) -> None:
    """With positive weights and no input only the last dropout makes zeros."""
    torch.manual_seed(1)
    stack = Tcn(input_size=50, hidden_size=50, num_layers=1, kernel_size=1, dropout=0.3, dropout_kind=kind)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(1.0)
    out, _ = stack(torch.zeros(8, 20, 50), torch.full((8,), 20))
    dropped = out == 0
    assert 0.2 < float(dropped.double().mean()) < 0.4
    same_in_all_frames = bool((dropped == dropped[:, :1]).all())
    assert same_in_all_frames == (kind == "channel")
    assert not bool((dropped == dropped[:1]).all())  # items have masks of their own
    kept = stack.eval()(torch.zeros(8, 20, 50), torch.full((8,), 20))[0]
    assert not bool((kept == 0).any())


@pytest.mark.parametrize("padding", ["causal", "centred"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_streams_through_many_blocks(padding: str, batch_norm: bool) -> None:
    """Beyond the receptive field, 248 frames, in single frames and in chunks shorter and longer than a dilation."""
    stack = random_stack(num_layers=5, kernel_size=5, padding=padding, batch_norm=batch_norm).eval()
    inputs = torch.randn(2, 300, 5, dtype=torch.float64)
    offline, _ = stack(inputs, torch.tensor([300, 300]))
    for sizes in ([1] * 299, [7] * 42, [0, 100, 2, 33, 0], []):
        assert max_error(streamed(stack, inputs, sizes), offline) < 1e-10


@pytest.mark.parametrize("num_frames", [0, 1, 2, 9, 28, 29])
def test_an_utterance_shorter_than_the_lookahead_loses_nothing(num_frames: int) -> None:
    stack = random_stack(kernel_size=5, padding="centred").eval()
    assert stack.lookahead_frames == 28
    inputs = torch.randn(1, num_frames, 5, dtype=torch.float64)
    out = streamed(stack, inputs, [1] * (num_frames // 2))
    assert out.shape == (1, num_frames, 4)
    if num_frames:
        assert max_error(out, stack(inputs, torch.tensor([num_frames]))[0]) < 1e-10


@pytest.mark.parametrize(("padding", "age"), [("causal", 0), ("centred", 28)])
def test_state_holds_what_is_needed_and_no_more(padding: str, age: int) -> None:
    """(k - 1) d frames for each convolution, and as many on their way around when centred, from `age` on."""
    stack = random_stack(kernel_size=5, padding=padding).eval()
    inputs = torch.randn(1, 100, 5, dtype=torch.float64)
    _, state = stack.step(inputs[:, :age], stack.initial_state(1, inputs))
    for position in range(age, 100, 3):
        assert [t.shape[1] for t in state.first] == [t.shape[1] for t in state.second] == [4, 8, 16]
        assert [t.shape[1] for t in state.around] == ([4, 8, 16] if padding == "centred" else [0, 0, 0])
        _, state = stack.step(inputs[:, position : position + 3], state)


@pytest.mark.parametrize("padding", ["causal", "centred"])
def test_state_stays_float32_under_autocast(padding: str) -> None:
    stack = Tcn(input_size=5, hidden_size=4, num_layers=2, kernel_size=3, padding=padding).eval()
    inputs = torch.randn(1, 20, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = stack.step(inputs, stack.initial_state(1, inputs))
    assert {t.dtype for t in chain(*state)} == {torch.float32}


def test_an_even_kernel_has_no_centre() -> None:
    with pytest.raises(ValueError, match=r"stack.kernel_size: got 4 with stack.padding=centred"):
        Tcn(input_size=5, hidden_size=4, num_layers=1, kernel_size=4, padding="centred")
