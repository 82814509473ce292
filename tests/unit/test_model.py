"""The whole model, from PCM to log-probabilities: batch invariance, streaming, latency."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import model
from asr.config.schema import Config
from asr.errors import NotStreamable
from asr.model import SpeechModel
from tests.support.streaming import streamed

FRONT_END = {
    "layers": [
        {"channels": 3, "time_kernel": 5, "time_stride": 2, "frequency_kernel": 5, "frequency_stride": 2},
        {"channels": 4, "time_kernel": 3, "time_stride": 2, "frequency_kernel": 3, "frequency_stride": 2},
    ]
}
FORWARD = {"name": "gru", "num_layers": 2, "hidden_size": 12, "bidirectional": False, "lookahead_frames": 3}


def made(**sections: object) -> SpeechModel:
    """A small model with running statistics from a batch of noise."""
    values = {"features": {"num_mels": 12}, "front_end": FRONT_END, "stack": FORWARD} | sections
    module = model.build(Config.model_validate(values), num_tokens=7)
    module.features.fit_normalization([0.1 * torch.randn(16000).numpy()])
    module.train()
    for _ in range(20):
        module(0.1 * torch.randn(4, 16000), torch.tensor([16000, 9000, 12000, 16000]), torch.arange(4))
    return module.eval()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"stack": {"name": "gru", "num_layers": 2, "hidden_size": 12}},
        {"features": {"num_mels": 12, "normalization": "utterance"}},
    ],
    ids=["forward", "bidirectional", "utterance"],
)
@torch.inference_mode()
def test_batch_invariance_on_realistic_lengths(sections: dict[str, object]) -> None:
    module = made(**sections)
    lengths = [int(16000 * seconds) for seconds in (7.3, 0.02, 2.0, 12.0)]
    audio = 0.1 * torch.randn(4, max(lengths))
    for row, length in enumerate(lengths):
        audio[row, length:] = 1e6
    together, frames = module(audio, torch.tensor(lengths))
    assert frames.tolist() == [module.frame_count(length) for length in lengths]
    for row, length in enumerate(lengths):
        alone, count = module(audio[row : row + 1, :length], torch.tensor([length]))
        assert int(count[0]) == frames[row]
        difference = (alone[0, : frames[row]] - together[row, : frames[row]]).abs()
        assert float(difference.max() if len(difference) else 0) <= 1e-5


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 4567, 20000])
@torch.inference_mode()
def test_streaming_equals_offline_from_samples(num_samples: int) -> None:
    module = made()
    audio = 0.1 * torch.randn(1, num_samples)
    offline, frames = module(audio, torch.tensor([num_samples]))

    @settings(max_examples=10)
    @given(st.lists(st.sampled_from([0, 1, 3, 160, 333, 640, 5000]), max_size=40))
    def check(sizes: list[int]) -> None:
        online = streamed(module, audio, sizes)
        assert online.shape[1] == int(frames[0])
        assert torch.allclose(online, offline[:, : int(frames[0])], rtol=0, atol=1e-5)

    check()


@torch.inference_mode()
def test_an_output_waits_for_no_more_than_lookahead_seconds() -> None:
    module = made()
    audio, step = 0.1 * torch.randn(1, 32000), 160
    state, given_frames, waits = module.initial_state(1, audio), 0, []
    for position in range(0, 32000, step):
        piece, state = module.step(audio[:, position : position + step], state)
        for _ in range(piece.shape[1]):
            waits.append((position + step) / 16000 - given_frames * module.frame_seconds)
            given_frames += 1
    assert waits
    assert max(waits) <= module.lookahead_seconds + step / 16000
    assert max(waits) > module.lookahead_seconds - 2 * module.frame_seconds


@pytest.mark.parametrize(
    ("sections", "alternative"),
    [
        ({"stack": {"name": "gru", "num_layers": 1, "hidden_size": 8}}, "stack=gru_streaming"),
        ({"features": {"num_mels": 12, "normalization": "utterance"}}, "features.normalization=global"),
    ],
)
def test_a_model_that_cannot_stream_says_why_and_what_can(sections: dict[str, object], alternative: str) -> None:
    module = made(**sections)
    with pytest.raises(NotStreamable, match=alternative):
        module.initial_state(1, torch.zeros(1, 1))
    with pytest.raises(NotStreamable, match=alternative):
        _ = module.lookahead_seconds


def test_training_gradients_ignore_stand_ins() -> None:
    """An item of no samples, as a rank without work gets, changes neither gradients nor statistics."""
    module = made(head={"dropout": 0.0}).train()
    audio, lengths, seeds = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 8000]), torch.arange(2)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def run(audio: torch.Tensor, lengths: torch.Tensor, seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        module.load_state_dict(state)
        module.zero_grad()
        log_probs, frames = module(audio, lengths, seeds)
        log_probs[torch.arange(log_probs.shape[1]) < frames[:, None]][:, 1].sum().backward()
        gradients = {f"d {name}": p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        return gradients | {name: buffer.clone() for name, buffer in module.named_buffers()}

    alone = run(audio, lengths, seeds)
    stand_in = torch.nn.functional.pad(audio, (0, 0, 0, 1))
    beside = run(stand_in, torch.tensor([16000, 8000, 0]), torch.arange(3))
    for name, value in alone.items():
        assert torch.allclose(value, beside[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(
    "stack",
    [
        {"name": "gru", "num_layers": 2, "hidden_size": 12},
        {"name": "lstm", "num_layers": 2, "hidden_size": 12, "merge": "concat"},
        {"name": "dilated", "cell": "gru", "num_layers": 3, "hidden_size": 12, "bidirectional": True},
        {"name": "diagonal", "num_layers": 2, "hidden_size": 12},
        {"name": "tcn", "num_layers": 2, "hidden_size": 12},
    ],
    ids=lambda stack: stack["name"],
)
@pytest.mark.parametrize("frames", [1, 7, 64])
@torch.inference_mode()
def test_long_audio_in_blocks_is_the_same(
    stack: dict[str, object], frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made(stack=stack).double()
    audio, length = 0.1 * torch.randn(1, 20000, dtype=torch.float64), torch.tensor([19001])
    whole, num_frames = module(audio, length)
    blocks: list[int] = []
    front_end = type(module.front_end).step
    monkeypatch.setattr("asr.model.BLOCK_SAMPLES", 3001)
    monkeypatch.setattr("asr.nn.recurrent_layer.BLOCK_FRAMES", frames)
    monkeypatch.setattr(type(module.front_end), "step", lambda *args: blocks.append(1) or front_end(*args))
    pieces, num_pieces = module(audio, length)
    assert len(blocks) == 7
    assert num_pieces.tolist() == num_frames.tolist()
    assert float((pieces - whole[:, : int(num_frames)]).abs().max()) <= 1e-10
