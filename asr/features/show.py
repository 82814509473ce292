"""`asr show augment FILE`: hear and see what a recipe does to its training audio."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from asr.config import load
from asr.config.schema import Config
from asr.errors import ConfigError
from asr.pictures import new_figure


def main(argv: Sequence[str]) -> int:
    """Write the audio and the features of one file, before and after, for some seeds."""
    parser = argparse.ArgumentParser(
        prog="asr show", description="Hear and see what a recipe's `augment` section does to a file."
    )
    parser.add_argument("what", choices=["augment"])
    parser.add_argument("audio", type=Path, help="an audio file")
    parser.add_argument("overrides", nargs="*", help="as in training: augment=speed_specaugment augment.gain_db=6 ...")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/librispeech"), help="folder with config.yaml")
    parser.add_argument("--output", type=Path, default=Path("augmented"), help="folder for the results (augmented)")
    parser.add_argument("--variants", type=int, default=4, help="how many different draws (4)")
    parser.add_argument("--epoch", type=int, default=1_000_000, help="of the curriculum; default: full strength")
    options = parser.parse_intermixed_args(argv)  # options may stand between the overrides
    if options.variants < 1:
        parser.error(f"--variants: got {options.variants}, expected 1 or more")
    config = load(options.recipe, options.overrides)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {options.output}: the folder cannot be made: {error.strerror}") from error
    for path in write_variants(config, options.audio, options.output, options.variants, options.epoch):
        print(path)
    return 0


def write_variants(config: Config, audio: Path, output: Path, variants: int, epoch: int) -> list[Path]:
    """Write NAME-0.wav (as it is), NAME-1.wav, ... and NAME.png with the spectrogram of each; gives their paths.

    The pictures hold the features before normalisation, with SpecAugment's masks left white.

    Raises:
        DataError: the audio cannot be read.
        ConfigError: matplotlib is not installed, or a folder of noises cannot be used.
    """
    import numpy as np
    import soundfile
    import torch

    from asr import features
    from asr.audio import augment
    from asr.audio.io import read_audio
    from asr.features import specaugment

    rate = config.data.sample_rate_hz
    extractor = features.build(config.features.model_copy(update={"normalization": "none"}), rate)
    masks = specaugment.build(config.augment)
    perturb = augment.build(config.augment, rate)
    original = read_audio(audio, sample_rate_hz=rate)
    versions = [original, *(perturb(original, seed, epoch) for seed in range(1, variants + 1))]

    figure = new_figure(figsize=(9, 1.9 * len(versions)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(versions), sharex=True, sharey=True))
    paths = []
    for number, (samples, place) in enumerate(zip(versions, axes, strict=True)):
        path = output / f"{audio.stem}-{number}.wav"
        soundfile.write(path, np.clip(samples, -1, 1), rate)
        paths.append(path)
        spectrum, lengths = extractor(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        shown = spectrum.clone()
        if number:
            kept = masks(torch.ones_like(spectrum), lengths, torch.tensor([number]))
            shown[kept == 0] = torch.nan
        seconds = len(samples) / rate
        place.imshow(shown[0].T.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, spectrum.shape[2]))
        place.set(title=f"draw {number}" if number else audio.name, ylabel="bin")
        place.title.set_fontsize("small")
    axes[-1].set_xlabel("seconds")
    picture = output / f"{audio.stem}.png"
    figure.savefig(picture, dpi=80)
    return [*paths, picture]
