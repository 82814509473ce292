"""The convolutional front end: shapes of the paper, masking, streaming."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asr.nn.front_end
from asr.config.schema import ConvLayer, FrontEnd
from asr.nn.folding import fold_norms
from asr.nn.front_end import ConvBlock, ConvFrontEnd, build
from tests.support.streaming import streamed

TWO = (
    ConvLayer(channels=3, frequency_kernel=5, frequency_stride=2, time_kernel=5, time_stride=2),
    ConvLayer(channels=2, frequency_kernel=3, frequency_stride=2, time_kernel=3, time_stride=1),
)
PAPER = (
    ConvLayer(channels=32, frequency_kernel=41, frequency_stride=2, time_kernel=11, time_stride=2),
    ConvLayer(channels=32, frequency_kernel=21, frequency_stride=2, time_kernel=11, time_stride=1),
)
THREE_1D = (
    ConvLayer(channels=5, time_kernel=5, time_stride=1),
    ConvLayer(channels=4, time_kernel=3, time_stride=3),
    ConvLayer(channels=3, time_kernel=3, time_stride=2),
)
KINDS = {
    "2d": {"layers": TWO},
    "2d causal": {"layers": TWO, "padding": "causal"},
    "2d no norm": {"layers": TWO, "batch_norm": False},
    "1d": {"layers": THREE_1D, "kind": "conv1d"},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def front_end(request: pytest.FixtureRequest) -> ConvFrontEnd:
    torch.manual_seed(0)
    module = ConvFrontEnd(num_features=9, **request.param).double()
    module.train()
    module(torch.randn(2, 50, 9, dtype=torch.float64), torch.tensor([50, 20]))  # running statistics
    return module.eval()


def test_the_papers_two_layer_front_end_has_1312_outputs() -> None:
    """Section 1.3: 161 bins, two 2D layers of 32 channels: 32 * 41 inputs to the first recurrent layer."""
    assert ConvFrontEnd(num_features=161, layers=PAPER).output_size == 1312


def test_first_layer_is_torchs_convolution(front_end: ConvFrontEnd) -> None:
    block = front_end.layers[0]
    features = torch.randn(1, 20, 9, dtype=torch.float64)
    hidden, _ = block(features[..., None], torch.tensor([20]))
    padded = torch.nn.functional.pad(features[:, None], (0, 0, block.past, block.future))
    expected = block.conv(padded).permute(0, 2, 3, 1)
    if block.norm is not None:
        norm = block.norm
        expected = (expected - norm.running_mean) / torch.sqrt(norm.running_variance + 1e-5) * norm.scale + norm.shift
    assert torch.allclose(hidden, expected.clamp(0, 20), rtol=0, atol=1e-12)


def test_batch_invariance_and_garbage(front_end: ConvFrontEnd) -> None:
    features = torch.randn(3, 31, 9, dtype=torch.float64)
    lengths = torch.tensor([31, 1, 14])
    for row, length in enumerate(lengths):
        features[row, length:] = 1e6
    out, out_lengths = front_end(features, lengths)
    assert out_lengths.tolist() == [front_end.frame_count(int(n)) for n in lengths]
    for row, length in enumerate(lengths):
        alone, _ = front_end(features[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(alone[0], out[row, : alone.shape[1]], rtol=0, atol=1e-10)
        assert bool((out[row, alone.shape[1] :] == 0).all())


@pytest.mark.parametrize("frames", [0, 1, 2, 7, 40])
def test_streaming_equals_offline(front_end: ConvFrontEnd, frames: int) -> None:
    features = torch.randn(1, max(1, frames), 9, dtype=torch.float64)
    offline, lengths = front_end(features, torch.tensor([frames]))

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, 11), max_size=12))
    def check(sizes: list[int]) -> None:
        online = streamed(front_end, features[:, :frames], sizes)
        assert online.shape[1] == int(lengths[0])
        assert torch.allclose(online, offline[:, : int(lengths[0])], rtol=0, atol=1e-10)

    check()


def test_lookahead_is_what_it_says(front_end: ConvFrontEnd) -> None:
    features = torch.randn(1, 60, 9, dtype=torch.float64)
    before, _ = front_end(features, torch.tensor([60]))
    features[:, 30] += 1.0
    after, _ = front_end(features, torch.tensor([60]))
    first = int((before != after).any(-1)[0].nonzero()[0])
    stride = front_end.time_stride
    assert first >= (30 - front_end.lookahead_frames + stride - 1) // stride
    # An output sees `lookahead_frames` beyond its own first frame: some output reaches that far.
    reach = []
    for t in range(40, 40 + stride):
        changed = features.clone()
        changed[:, t] += 1.0
        out, _ = front_end(changed, torch.tensor([60]))
        reach.append(t - stride * int((out != after).any(-1)[0].nonzero()[0]))
    assert max(reach) == front_end.lookahead_frames


def test_gradients_are_torchs_own(front_end: ConvFrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution has a backward pass of its own on a CPU."""
    features = torch.randn(3, 31, 9, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([31, 12, 4])
    inputs = (features, *front_end.parameters())

    def gradients() -> tuple[torch.Tensor, ...]:
        out, _ = front_end.train()(features, lengths)
        return torch.autograd.grad(out.square().sum(), inputs)

    ours = gradients()

    def theirs(image: torch.Tensor, weight: torch.Tensor, *where: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.conv2d(image, weight, None, *where)

    monkeypatch.setattr(asr.nn.front_end._CpuConvolution, "apply", theirs)
    for mine, expected in zip(ours, gradients(), strict=True):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-10)


def test_few_utterances_are_not_slower_each_than_many() -> None:
    """In the channels-last layout oneDNN computed the weights' gradient some twenty times slower for one utterance."""
    module = ConvFrontEnd(num_features=80, layers=PAPER)

    def seconds(batch_size: int) -> float:
        features, lengths = torch.randn(batch_size, 200, 80), torch.full((batch_size,), 200)
        times = []
        for _ in range(3):
            start = time.process_time()
            module(features, lengths)[0].sum().backward()
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(1) < seconds(6)


@pytest.mark.parametrize("padding", ["same", "causal"])
@torch.inference_mode()
def test_a_folded_norm_changes_nothing(padding: str) -> None:
    torch.manual_seed(0)
    config = FrontEnd(padding=padding, layers=(ConvLayer(channels=5, time_kernel=3, frequency_kernel=3),))
    module = build(config, num_features=8).double()
    assert isinstance(module.layers[0], ConvBlock)
    norm = module.layers[0].norm
    assert norm is not None
    norm.running_mean.normal_()
    norm.running_variance.uniform_(0.5, 2.0)
    norm.scale.data.uniform_(0.5, 2.0)
    norm.shift.data.normal_()
    module.eval()
    features, lengths = torch.randn(2, 12, 8, dtype=torch.float64), torch.tensor([12, 7])
    expected, _ = module(features, lengths)
    fold_norms(module)
    assert module.layers[0].norm is None
    assert float((module(features, lengths)[0] - expected).abs().max()) <= 1e-12
    assert float(expected.abs().max()) > 0.1
