"""The contracts of docs/adding-a-stack.md on a GPU, for every stack and variant that tests/unit/stacks has.

Against float64 a GPU may be off by 1e-5 in outputs and 1e-4 in gradients, relative to the largest value, and by some
times what the CPU's own float32 is off by: 1e-7 to 1e-6 for most stacks and 1e-4 for the worst one, whose norm is
ill-conditioned. TF32, which keeps 3 digits, is off: it would be off by 1e-3.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from asr import stacks
from asr.config.options import names, validate_stack
from asr.errors import NotStreamable
from asr.nn.cells import Cell, GruCell, LstmCell, RnnCell, elementwise, full_on_gpu
from asr.nn.precision import whole_float32
from asr.stacks.base import Stack, State
from tests.support.streaming import streamed
from tests.support.waiting import nothing_waits
from tests.unit.stacks.test_contract import (  # noqa: F401 -- stack: a fixture
    INPUT_SIZE,
    batch,
    configurations,
    joined,
    label,
    leaves,
    stack,
)

DEVICE = "cuda"
OUTPUTS, GRADIENTS = 1e-5, 1e-4
OWN = 8  # times the CPU's own float32 error on top
SAME = 1e-5  # of outputs that differ in batch or chunks alone (DESIGN, section 2)
BF16 = 0.05  # the CPU's own bound
WIDE = {"hidden_size": 136}  # more than a tile of every kernel, and no multiple of one
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default:RNN module weights"),  # one test holds that there is no such warning
]


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    with whole_float32():
        yield


@pytest.fixture
def on_gpu(stack: Stack) -> Stack:  # noqa: F811
    return stack.float().to(DEVICE)


def audio(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """As the unit tests' `batch`, on the GPU, in float32."""
    inputs, numbers = batch(lengths, seed)
    return inputs.float().to(DEVICE), numbers.to(DEVICE)


def difference(got: Tensor, expected: Tensor, least: float = 1e-3) -> float:
    """The largest one, relative to the largest value expected, or to `least` if that is more."""
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    assert got.shape == expected.shape
    if not expected.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=least))


def without_dropout(module: Stack) -> Stack:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def training_step(module: Stack, inputs: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients of a random sum of them, and buffers, by name."""
    without_dropout(module).train()
    inputs = inputs.detach().requires_grad_()
    outputs, _ = module(inputs, lengths)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (outputs * weights.to(outputs)).sum().backward()
    assert inputs.grad is not None
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"outputs": outputs, "inputs": inputs.grad, **gradients, **dict(module.named_buffers())}


def check_against_float64(module: Stack, lengths: list[int]) -> None:
    """A training step on the GPU in float32, and the same on the CPU in float32 and float64, of the same weights."""
    module = module.float()
    inputs, numbers = audio(lengths)
    got = training_step(copy.deepcopy(module).to(DEVICE), inputs, numbers)
    ours = training_step(copy.deepcopy(module), inputs.cpu(), numbers.cpu())
    expected = training_step(module.double(), inputs.cpu().double(), numbers.cpu())
    assert got.keys() == expected.keys()
    least = 1e-3 * max(float(value.detach().abs().max()) for name, value in expected.items() if name != "outputs")
    errors = {name: (difference(got[name], e, least), difference(ours[name], e, least)) for name, e in expected.items()}
    too_far = {
        name: pair
        for name, pair in errors.items()
        if pair[0] > (OUTPUTS if name == "outputs" else GRADIENTS) + OWN * pair[1]
    }
    assert not too_far, f"(GPU, CPU in float32) {too_far}"


def test_equals_the_cpu_in_float64(stack: Stack) -> None:  # noqa: F811
    check_against_float64(stack, [60, 1, 37, 22])


@pytest.mark.parametrize("options", configurations(), ids=label)
def test_wide_equals_the_cpu_in_float64(options: dict[str, object]) -> None:
    """With the weights that training starts from; 18 items, more than the rows that a program of a kernel takes."""
    torch.manual_seed(3)
    module = stacks.build(validate_stack({**options, **WIDE}), INPUT_SIZE)
    check_against_float64(module, [70, 1, 37, 22, *range(40, 54)])


@torch.no_grad()
def test_padding_garbage_is_irrelevant(on_gpu: Stack) -> None:
    for training in (False, True):
        without_dropout(on_gpu).train(training)
        inputs, lengths = audio([9, 4, 6])
        clean, _ = on_gpu(inputs.clone(), lengths)
        for row, length in enumerate(lengths.tolist()):
            inputs[row, length:] = 1e6
        dirty, out_lengths = on_gpu(inputs, lengths)
        assert difference(dirty, clean) <= 1e-6
        for row, length in enumerate(out_lengths.tolist()):
            assert not dirty[row, length:].any()


@torch.no_grad()
def test_batch_invariance(on_gpu: Stack) -> None:
    lengths = [180, 1, 97, 33]
    inputs, numbers = audio(lengths)
    together, _ = on_gpu(inputs, numbers)
    for row, length in enumerate(lengths):
        alone, alone_lengths = on_gpu(inputs[row : row + 1, :length], numbers[row : row + 1])
        assert difference(together[row, : int(alone_lengths[0])], alone[0]) <= SAME


def test_bf16_is_close(on_gpu: Stack) -> None:
    """Outputs under autocast; and a training step under it gives finite gradients, most of them the same way."""
    inputs, lengths = audio([30, 12])
    with torch.no_grad():
        exact, _ = on_gpu(inputs, lengths)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            rounded, _ = on_gpu(inputs, lengths)
    assert difference(rounded, exact) <= BF16
    gradients = []
    for enabled in (False, True):
        without_dropout(on_gpu).train().zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled):
            outputs, _ = on_gpu(inputs, lengths)
        outputs.float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in on_gpu.parameters() if p.grad is not None]))
    assert bool(torch.isfinite(gradients[1]).all())
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


@torch.no_grad()
def test_streaming_equals_offline_or_says_why_not(on_gpu: Stack) -> None:
    inputs, lengths = audio([60, 60])
    if on_gpu.lookahead_frames is None:
        with pytest.raises(NotStreamable, match=r"(?i)stream"):
            on_gpu.initial_state(2, inputs)
        return
    offline, _ = on_gpu(inputs, lengths)
    for sizes in ([], [1] * 12, [0, 25, 1, 0, 2, 7], [3, 4, 5, 16]):
        assert difference(streamed(on_gpu, inputs, sizes), offline) <= SAME


@torch.no_grad()
def test_states_are_saved_moved_and_batched(on_gpu: Stack) -> None:
    """A stream that has heard 11 frames and one that has heard 4 go on together as each would alone on the CPU."""
    if on_gpu.lookahead_frames is None:
        pytest.skip("does not stream")
    ages = (11 + on_gpu.lookahead_frames, 4 + on_gpu.lookahead_frames)
    inputs, _ = audio([60, 60], seed=4)
    on_cpu = copy.deepcopy(on_gpu).cpu()
    states, alone = [], []
    for row, age in enumerate(ages):
        _, state = on_gpu.step(inputs[row : row + 1, :age], on_gpu.initial_state(1, inputs))
        assert all(tensor.device.type == DEVICE and len(tensor) == 1 for tensor in leaves(state))
        states.append(pickle.loads(pickle.dumps(state)))  # noqa: S301 -- our own
        alone.append(on_cpu.step(inputs[row : row + 1, age : age + 9].cpu(), moved(state, "cpu"))[0])
    chunk = torch.cat([inputs[row : row + 1, age : age + 9] for row, age in enumerate(ages)])
    together, _ = on_gpu.step(chunk, joined(*states))
    assert difference(together, torch.cat(alone)) <= OUTPUTS


def moved(state: State, device: str) -> State:
    if isinstance(state, Tensor):
        return state.to(device)
    fields = [moved(field, device) for field in state]
    return type(state)(*fields) if hasattr(state, "_fields") else tuple(fields)


def test_training_does_not_wait_for_the_device(on_gpu: Stack) -> None:
    if type(on_gpu).__name__ == "Skip":
        pytest.skip("asks in every turn whether anything is left to read")
    inputs, lengths = audio([30, 12])
    on_gpu.train()

    def step() -> None:
        on_gpu.zero_grad()
        outputs, _ = on_gpu(inputs, lengths)
        outputs.sum().backward()

    step()  # loads kernels and libraries
    with nothing_waits():
        step()


CUDNN: dict[str, Callable[..., Cell]] = {
    "gru": GruCell,
    "lstm": LstmCell,
    "rnn tanh": RnnCell,
    "rnn relu": partial(RnnCell, activation="relu"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CUDNN)
@pytest.mark.parametrize("sizes", [(6, 8), (33, 70), (512, 512)])
def test_cudnn_takes_the_weights_as_they_lie(
    name: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy of them, of which torch would warn."""
    monkeypatch.setattr(full_on_gpu, "fits", lambda like: False)
    cell = CUDNN[name](hidden_size=sizes[1], num_chains=1).to(DEVICE)
    weight = torch.randn(cell.num_gates * sizes[1], sizes[0], device=DEVICE, requires_grad=True)
    bias = torch.zeros(len(weight), device=DEVICE, requires_grad=True)
    initial = torch.zeros(1, 3, cell.num_states * sizes[1], device=DEVICE)
    outputs, _ = cell([torch.randn(5, 3, sizes[0], device=DEVICE)], weight, bias, initial)
    assert cell.on_cudnn()
    outputs.sum().backward()


def test_what_runs_where() -> None:
    """As the table of docs/stacks.md says, for cells; the other stacks have one path each."""
    like = torch.zeros(1, device=DEVICE)
    assert full_on_gpu.fits(like)
    assert not full_on_gpu.fits(like.double())
    loops = elementwise._loops(like)
    assert loops is not None
    assert loops.__name__ == "asr.nn.cells._triton"
    for cell in CUDNN.values():
        assert not cell(hidden_size=8, num_chains=1).to(DEVICE).on_cudnn()
        assert cell(hidden_size=8, num_chains=1).to(DEVICE).double().on_cudnn()


def test_there_are_stacks() -> None:
    assert len(names()) > 9
