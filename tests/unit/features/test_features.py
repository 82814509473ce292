"""The feature extractor: batch invariance, streaming, normalisation, SpecAugment."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import features
from asr.config.schema import Features
from asr.errors import ConfigError, NotStreamable
from asr.features import FeatureExtractor
from asr.features.specaugment import SpecAugment, uniform
from tests.support.streaming import streamed

DS2 = Features(kind="log_spectrogram", window_seconds=0.02)


@pytest.fixture(params=[Features(), DS2], ids=["log_mel", "log_spectrogram"])
def extractor(request: pytest.FixtureRequest) -> FeatureExtractor:
    module = features.build(request.param, 16000)
    module.fit_normalization([0.1 * np.random.default_rng(0).standard_normal(20000).astype(np.float32)])
    return module


def test_sizes_of_the_paper() -> None:
    """Deep Speech 2: 20 ms windows every 10 ms at 16 kHz, 161 bins."""
    module = features.build(DS2, 16000)
    assert (module.num_features, module.window_samples, module.hop_samples) == (161, 320, 160)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(0, 0), (1, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)]
)
def test_frame_count(num_samples: int, num_frames: int) -> None:
    module = features.build(Features(), 16000)
    assert module.frame_count(num_samples) == num_frames
    out, lengths = module(torch.zeros(1, max(1, num_samples)), torch.tensor([num_samples]))
    assert lengths.tolist() == [num_frames]
    assert out.shape == (1, max(1, num_frames), 80)


def test_batch_invariance_and_garbage(extractor: FeatureExtractor) -> None:
    lengths = torch.tensor([5000, 1, 8000, 399])
    audio = 0.1 * torch.randn(4, 8000)
    for row, length in enumerate(lengths):
        audio[row, length:] = 1e6
    out, counts = extractor(audio, lengths)
    for row, length in enumerate(lengths):
        alone, _ = extractor(audio[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(alone[0, : counts[row]], out[row, : counts[row]], rtol=0, atol=1e-5)
        assert bool((out[row, counts[row] :] == 0).all())


def test_no_sample_beyond_a_frames_window_matters(extractor: FeatureExtractor) -> None:
    audio = 0.1 * torch.randn(1, 8000)
    before, _ = extractor(audio, torch.tensor([8000]))
    audio[:, 4000:] = 0.5
    after, _ = extractor(audio, torch.tensor([8000]))
    same = extractor.frame_count(4000)
    assert torch.equal(before[:, :same], after[:, :same])
    assert not torch.equal(before[:, same], after[:, same])


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 5000])
def test_streaming_equals_offline(extractor: FeatureExtractor, num_samples: int) -> None:
    audio = 0.1 * torch.randn(1, num_samples)
    offline, lengths = extractor(audio, torch.tensor([num_samples]))

    @settings(max_examples=15)
    @given(st.lists(st.sampled_from([0, 1, 7, 159, 160, 161, 400, 1333]), max_size=15))
    def check(sizes: list[int]) -> None:
        online = streamed(extractor, audio, sizes)
        assert online.shape[1] == int(lengths[0])
        assert torch.allclose(online, offline[:, : online.shape[1]], rtol=0, atol=1e-5)

    check()


def test_global_normalisation_gives_mean_0_and_deviation_1(extractor: FeatureExtractor) -> None:
    audio = 0.1 * np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    out, _ = extractor(torch.from_numpy(audio)[None], torch.tensor([20000]))
    assert torch.allclose(out.mean((0, 1)), torch.zeros(extractor.num_features), atol=1e-4)
    assert torch.allclose(out.std((0, 1), correction=0), torch.ones(extractor.num_features), atol=1e-3)


def test_utterance_normalisation_uses_the_utterances_own_frames_and_does_not_stream() -> None:
    module = features.build(Features(normalization="utterance"), 16000)
    audio = torch.randn(2, 8000)
    out, counts = module(audio, torch.tensor([8000, 3000]))
    own = out[1, : counts[1]]
    assert torch.allclose(own.mean(0), torch.zeros(80), atol=1e-4)
    assert torch.allclose(own.std(0, correction=0), torch.ones(80), atol=1e-3)
    assert "normalization=global" in module.not_streamable
    with pytest.raises(NotStreamable, match="normalization=global"):
        module.initial_state(1, audio)
    with pytest.raises(NotStreamable, match="normalization=global"):
        module.step(audio, features.FeatureState(audio[:, :0]))


def test_utterance_normalisation_of_a_constant_is_0() -> None:
    module = features.build(Features(normalization="utterance"), 16000)
    out, _ = module(torch.zeros(1, 16000), torch.tensor([16000]))
    assert bool((out == 0).all())


def test_a_band_that_training_never_filled_is_not_blown_up() -> None:
    """Mel features span 16 nepers from the floor to full scale; at 0.1 a deviation that is at most a few hundred."""
    module = features.build(Features(), 16000)
    module.fit_normalization([np.zeros(16000, np.float32)])
    out, _ = module(0.5 * torch.randn(1, 16000), torch.tensor([16000]))
    assert float(out.abs().max()) < 300


def test_frame_count_of_a_tensor() -> None:
    counts = features.build(Features(), 16000).frame_count(torch.tensor([0, 1, 399, 400, 559, 560, 16000]))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [0, 0, 0, 1, 1, 2, 98]


def test_hop_has_to_be_at_most_the_window() -> None:
    with pytest.raises(ConfigError, match=r"features.hop_seconds: got 0.03 s, expected at most"):
        features.build(Features(window_seconds=0.025, hop_seconds=0.03), 16000)


def test_every_mel_bin_has_to_hold_a_bin_of_the_dft() -> None:
    with pytest.raises(ConfigError, match=r"features.num_mels: got 256, of which \d+ lie between"):
        features.build(Features(num_mels=256), 16000)


def test_window_has_to_be_whole_samples() -> None:
    with pytest.raises(ConfigError, match=r"features.window_seconds: got 0.0251 s, 401.6 samples at 16000 Hz"):
        features.build(Features(window_seconds=0.0251), 16000)


AUGMENT = SpecAugment(
    frequency_masks=2, frequency_mask_bins=10, time_masks=2, time_mask_frames=30, time_mask_fraction=0.2
)


def test_specaugment_depends_on_the_seed_alone() -> None:
    inputs = torch.randn(3, 200, 40)
    lengths, seeds = torch.tensor([200, 50, 120]), torch.tensor([5, 2**62, 77])
    together = AUGMENT(inputs, lengths, seeds)
    for row in range(3):
        alone = AUGMENT(inputs[row : row + 1, : lengths[row]], lengths[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone[0], together[row, : lengths[row]])
    assert not torch.equal(AUGMENT(inputs, lengths, seeds + 1), together)


def test_specaugment_masks_stay_within_their_bounds() -> None:
    count = 2000
    lengths = torch.full((count,), 100)
    masked = AUGMENT(torch.ones(count, 120, 40), lengths, torch.arange(count)) == 0
    bins = masked[:, 110].sum(1)  # beyond the length only frequency masks reach
    assert int(bins.max()) <= 20
    assert 7 < float(bins.float().mean()) < 10  # two masks of mean width 5, sometimes overlapping
    frames = masked[:, :100].all(2).sum(1)
    assert int(frames.max()) <= 40  # two masks of at most a fifth of 100 frames
    assert 14 < float(frames.float().mean()) < 20
    assert bool((~masked[:, 100:].all(2)).all())


def test_uniform_numbers_are_uniform() -> None:
    numbers = torch.stack([uniform(torch.arange(20000), counter) for counter in range(4)])
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    for row in numbers:
        histogram = torch.histc(row, bins=20, min=0, max=1)
        chi_square = float(((histogram - 1000) ** 2 / 1000).sum())
        assert chi_square < 43.8  # 99.9 % of 19 degrees of freedom
    assert float(torch.corrcoef(numbers).fill_diagonal_(0).abs().max()) < 0.03


def test_uniform_is_splitmix64() -> None:
    """First output of splitmix64 with seed 1234567, as published with its reference code: 6457827717110365317."""
    assert float(uniform(torch.tensor([1234567]), 0)[0]) == (6457827717110365317 >> 40) / 2**24
