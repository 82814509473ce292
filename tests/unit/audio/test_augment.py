"""Augmentation: each effect does what its numbers say, and everything comes from the utterance's seed."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asr.audio import augment
from asr.audio.codec import Codec, mu_law
from asr.audio.noise import Noise, coloured
from asr.audio.reverberation import Reverberation
from asr.config.schema import Augment
from asr.errors import ConfigError

RATE_HZ = 16000
SPEECH = (0.2 * np.sin(2 * np.pi * np.cumsum(np.linspace(100, 1500, 3 * RATE_HZ)) / RATE_HZ)).astype(np.float32)
EVERYTHING = {
    "speeds": (0.9, 1.1),
    "gain_db": 6.0,
    "noise": {"probability": 1.0},
    "reverberation": {"probability": 1.0},
    "codec": {"probability": 1.0},
}


def make(**options: object) -> augment.Perturbation:
    return augment.build(Augment.model_validate(options), RATE_HZ)


def snr_db(clean: NDArray[np.float32], noisy: NDArray[np.float32]) -> float:
    noise = noisy.astype(np.float64) - clean
    return float(10 * np.log10(np.square(clean.astype(np.float64)).sum() / np.square(noise).sum()))


def test_everything_comes_from_the_seed() -> None:
    perturb = make(**EVERYTHING)
    for seed in range(3):
        assert np.array_equal(perturb(SPEECH, seed, 0), perturb(SPEECH, seed, 0))
    assert not np.array_equal(perturb(SPEECH, 1, 0)[:1000], perturb(SPEECH, 2, 0)[:1000])


def test_nothing_asked_for_changes_nothing() -> None:
    assert make()(SPEECH, 7, 3) is SPEECH


def test_one_effect_does_not_change_what_another_draws() -> None:
    """The same noise is added with and without a codec that never comes up, and with another speed list of one."""
    alone = make(noise={"probability": 1.0})
    beside = make(noise={"probability": 1.0}, codec={"probability": 0.0}, reverberation={"probability": 0.0})
    assert np.array_equal(alone(SPEECH, 5, 0), beside(SPEECH, 5, 0))


def test_as_many_utterances_are_noisy_as_asked() -> None:
    perturb = make(noise={"probability": 0.4})
    short = SPEECH[:400]
    changed = sum(perturb(short, seed, 0) is not short for seed in range(2000))
    assert abs(changed / 2000 - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 2000)


@pytest.mark.parametrize(("low", "high"), [(0.0, 30.0), (10.0, 10.0), (-5.0, 5.0)])
def test_noise_is_as_loud_as_its_ratio_says(low: float, high: float) -> None:
    noise = Noise(1.0, (low, high), (), RATE_HZ)
    ratios = [snr_db(SPEECH, noise(SPEECH, np.random.default_rng(seed))) for seed in range(60)]
    assert low - 0.01 <= min(ratios)
    assert max(ratios) <= high + 0.01
    assert max(ratios) - min(ratios) >= 0.8 * (high - low)  # they spread over the range


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_noise_of_any_length(length: int) -> None:
    audio = np.full(length, 0.1, dtype=np.float32)
    out = Noise(1.0, (0, 30), (), RATE_HZ)(audio, np.random.default_rng(1))
    assert out.shape == (length,)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_silence_stays_silent() -> None:
    silence = np.zeros(1000, dtype=np.float32)
    assert make(**EVERYTHING | {"codec": {"probability": 0.0}})(silence, 3, 0).any() == False  # noqa: E712
    assert len(make(**EVERYTHING)(np.zeros(0, dtype=np.float32), 3, 0)) == 0


def test_colour_ranges_from_white_to_brown() -> None:
    def slope(seed: int) -> float:
        power = np.square(np.abs(np.fft.rfft(coloured(1 << 16, np.random.default_rng(seed)))))[1:]
        bins = np.arange(1, len(power) + 1)
        edges = np.geomspace(1, len(power), 20).astype(int)
        means = [np.log(power[a:b].mean()) for a, b in pairwise(edges[8:])]
        centres = [np.log(bins[a:b].mean()) for a, b in pairwise(edges[8:])]
        return float(-np.polyfit(centres, means, 1)[0])

    slopes = [slope(seed) for seed in range(30)]
    assert -0.2 < min(slopes) < 0.5
    assert 1.5 < max(slopes) < 2.2


def test_recorded_noise_comes_from_the_folder(tmp_path: Path) -> None:
    """A tone of 1 kHz, shorter than the speech and at another rate: it begins anew, and its frequency is kept."""
    (tmp_path / "sub").mkdir()
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / "sub" / "tone.wav", np.stack((tone, tone), 1), 44100)
    (tmp_path / "notes.txt").write_text("no audio")
    perturb = make(noise={"probability": 1.0, "folder": tmp_path, "snr_db": (10.0, 10.0)})
    noise = perturb(SPEECH, 2, 0) - SPEECH
    spectrum = np.abs(np.fft.rfft(noise))
    peak = spectrum.argmax() * RATE_HZ / len(noise)
    assert peak == pytest.approx(1000, abs=1)
    assert snr_db(SPEECH, SPEECH + noise) == pytest.approx(10.0, abs=0.01)
    assert np.abs(noise[-RATE_HZ // 10 :]).max() > 0.01  # to the end


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: None, "got no audio there"),
        (lambda folder: (folder / "x.wav").write_bytes(b"RIFF"), "x.wav"),
        (lambda folder: soundfile.write(folder / "empty.wav", np.zeros(0), 8000), "empty.wav"),
    ],
)
def test_a_folder_that_cannot_be_used_is_said_before_training(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=said):
        make(noise={"folder": tmp_path})
    with pytest.raises(ConfigError, match=said):
        make(reverberation={"folder": tmp_path})


def test_a_room_keeps_power_and_time_and_lasts_as_long_as_it_says() -> None:
    click = np.zeros(RATE_HZ, dtype=np.float32)
    click[1000] = 1.0
    for seed in range(5):
        wet = Reverberation(1.0, (0.4, 0.4), (), RATE_HZ)(click, np.random.default_rng(seed))
        assert wet.shape == click.shape
        assert np.abs(wet).argmax() == 1000  # the direct sound is not moved
        assert np.abs(wet[:1000]).max() < 1e-6
        assert np.square(wet).sum() == pytest.approx(1.0, rel=1e-4)
        tail = np.square(wet[1001:].astype(np.float64))
        left = np.cumsum(tail[::-1])[::-1] / tail.sum()  # Schroeder's backward integral
        twenty, forty = (int(np.argmax(left < 10**-x)) for x in (1, 3))
        assert 3 * (forty - twenty) / RATE_HZ == pytest.approx(0.4, rel=0.25)  # 20 dB, thrice


def test_recorded_rooms_begin_at_their_direct_sound(tmp_path: Path) -> None:
    response = np.zeros(800)
    response[[300, 500]] = [0.8, 0.4]
    soundfile.write(tmp_path / "room.wav", response, RATE_HZ, subtype="FLOAT")
    click = np.zeros(2000, dtype=np.float32)
    click[100] = 1.0
    wet = make(reverberation={"probability": 1.0, "folder": tmp_path})(click, 1, 0)
    assert sorted(np.argsort(-np.abs(wet))[:2]) == [100, 300]
    assert wet[300] / wet[100] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["telephone", "vorbis", "opus", "mp3"])
def test_codecs_keep_length_and_timing(kind: str) -> None:
    codec = Codec(1.0, (kind,), RATE_HZ)
    for length in (1, 999, len(SPEECH)):
        out = codec(SPEECH[:length], np.random.default_rng(0))
        assert out.shape == (length,)
        assert out.dtype == np.float32
    decoded = codec(SPEECH, np.random.default_rng(3))
    size = 1 << 17
    correlation = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(SPEECH, size)))
    assert int(correlation.argmax()) in (0, 1, size - 1)
    assert 5 < snr_db(SPEECH, decoded) < 60  # lossy, but the same speech


def test_mu_law_has_256_values_and_a_small_relative_error() -> None:
    samples = np.linspace(-1, 1, 100_001, dtype=np.float32)
    rounded = mu_law(samples)
    assert len(np.unique(rounded)) == 256
    loud = np.abs(samples) > 0.02
    assert np.abs(rounded[loud] / samples[loud] - 1).max() < 0.05


def test_the_curriculum_grows_from_nothing() -> None:
    perturb = make(noise={"probability": 1.0, "snr_db": (0.0, 30.0)}, curriculum_epochs=4)
    first = [perturb(SPEECH, seed, 0) for seed in range(20)]
    assert all(audio is SPEECH for audio in first)
    half = [perturb(SPEECH, seed, 2) for seed in range(200)]
    noisy = [snr_db(SPEECH, audio) for audio in half if audio is not SPEECH]
    assert 0.35 < len(noisy) / 200 < 0.65
    assert min(noisy) >= 14.9  # half of the way from 30 dB down to 0
    full = [snr_db(SPEECH, perturb(SPEECH, seed, 4)) for seed in range(100)]
    assert min(full) < 5
    late = perturb(SPEECH, 1, 9)
    assert np.array_equal(late, perturb(SPEECH, 1, 4))


def test_bounds_in_the_wrong_order_and_no_codec_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the lower bound first"):
        Augment.model_validate({"noise": {"snr_db": [30, 0]}})
    with pytest.raises(ValueError, match="expected one or more"):
        Augment.model_validate({"codec": {"kinds": []}})
