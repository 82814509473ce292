"""`asr show augment`: audio and a picture of what training hears."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.cli import main

RECIPE = Path(__file__).parents[3] / "recipes" / "an4"


def show(audio: Path, output: Path, *more: str) -> int:
    return main(["show", "augment", str(audio), "--recipe", str(RECIPE), "--output", str(output), *more])


def test_each_draw_is_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    arguments = ["--variants", "2", "augment=noisy", "augment.noise.probability=1", "augment.speeds=[0.9]"]
    assert show(tmp_path / "a.wav", tmp_path / "out", *arguments) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in printed] == ["a-0.wav", "a-1.wav", "a-2.wav", "a.png"]
    heard = [soundfile.read(path)[0] for path in printed[:3]]
    assert np.abs(heard[0] - samples).max() < 1e-3
    assert [len(audio) for audio in heard] == [8000, 8889, 8889]  # 8000 / 0.9
    assert not np.array_equal(heard[1], heard[2])
    assert printed[3].read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in ((["augment.noize=1"], "augment.noize"), ([], "No such file")):
        with pytest.raises(SystemExit):
            show(tmp_path / "none.wav", tmp_path / "out", *arguments)
        assert said in capsys.readouterr().err
