"""`asr average`: each weight the mean in float64, of checkpoints that are of one model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asr import checkpoint, model
from asr.cli import run as run_command
from asr.config.schema import Config
from asr.metrics.calibration import Calibration
from asr.text.tokenizer import build_tokenizer

SECTIONS: dict[str, Any] = {
    "features": {"num_mels": 8},
    "front_end": {"layers": [{"channels": 2, "time_kernel": 3, "frequency_kernel": 3}]},
    "stack": {"name": "gru", "num_layers": 1, "hidden_size": 4},
}
WERS = {1: 0.3, 2: 0.1, 4: 0.2}  # 3 was not validated


def name(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def write(folder: Path, seed: int, texts: tuple[str, ...] = ("abc",), **sections: Any) -> None:
    config = Config.model_validate(SECTIONS | sections)
    tokenizer = build_tokenizer(config.text, texts)
    random = torch.Generator().manual_seed(seed)
    weights = model.build(config, tokenizer.num_tokens).state_dict()
    weights = {name: torch.randn(tensor.shape, generator=random) for name, tensor in weights.items()}
    provenance = {"step": seed, "init_from": {"checkpoint": "x"}, "metrics": {"validation/wer": 0.5}}
    checkpoint.save(
        folder, weights=weights, config=config, tokenizer=tokenizer, provenance=provenance, trainer={"step": seed}
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in range(1, 5):
        write(tmp_path / name(step), step)
    index = {"best": name(2), "best_wer": 0.1, "last": name(4), "kept": [name(step) for step in range(1, 5)]}
    checkpoint.write_index(tmp_path, index | {"wers": {name(step): wer for step, wer in WERS.items()}})
    return tmp_path


@pytest.mark.parametrize(
    ("option", "count", "steps"), [("--last", 3, [2, 3, 4]), ("--best", 2, [2, 4]), ("--last", 1, [4])]
)
def test_the_mean(run: Path, capsys: pytest.CaptureFixture[str], option: str, count: int, steps: list[int]) -> None:
    checkpoint.write_calibration(run / name(4), Calibration(2.0))
    assert run_command("average", [str(run), option, str(count)]) == 0
    said = capsys.readouterr().out
    folder = run / "averages" / f"{option[2:]}-{count}-step-{steps[-1]:08d}"
    assert f"written: {folder}" in said
    assert f"no calibration.json is taken over, as it belongs to one model: `asr calibrate {folder} MANIFEST`" in said
    loaded = checkpoint.load(folder)
    members = [load_file(run / name(step) / "model.safetensors") for step in steps]
    assert len(members[0]) > 10
    for key, tensor in loaded.model.state_dict().items():
        expected = torch.stack([member[key].double() for member in members]).mean(0)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected.float())
    assert loaded.calibration is None
    assert not (folder / "trainer.pt").exists()
    assert [row["checkpoint"] for row in loaded.provenance["averaged"]] == [str(run / name(step)) for step in steps]
    assert [row["wer"] for row in loaded.provenance["averaged"]] == [WERS.get(step) for step in steps]
    assert (loaded.provenance["step"], loaded.provenance["metrics"]) == (steps[-1], {})
    assert loaded.provenance["init_from"] == {"checkpoint": "x"}
    for step in steps:
        rate = f"  validation WER {100 * WERS[step]:.2f} %" if step in WERS else ""
        assert f"  step-{step:08d}{rate}\n" in said


def test_integers_are_the_newests_and_sums_are_exact(tmp_path: Path) -> None:
    """1e8 + 1 - 1e8 is 0 in float32."""
    from asr.decode.average import Member, average

    for step, value in enumerate((1e8, 1.0, -1e8)):
        write(tmp_path / str(step), step)
        config, tokenizer = Config.model_validate(SECTIONS), build_tokenizer(Config().text, ["abc"])
        weights = {"x": torch.tensor([value]), "count": torch.tensor([step])}
        checkpoint.save(
            tmp_path / f"c{step}", weights=weights, config=config, tokenizer=tokenizer, provenance={"step": step}
        )
    average([Member(tmp_path / f"c{step}", 0.5) for step in range(3)], tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["count"].item() == 2
    assert weights["x"].item() == pytest.approx(1 / 3, rel=1e-7)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"stack": SECTIONS["stack"] | {"hidden_size": 5}}, "stack.hidden_size: got 5, expected 4"),
        ({"features": {"num_mels": 9}}, "features.num_mels: got 9, expected 8"),
        ({"texts": ("abd",)}, "tokenizer: got (' ', 'a', 'b', 'd'), expected (' ', 'a', 'b', 'c')"),
    ],
)
def test_other_models_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    (run / name(3)).rename(run / "unused")
    write(run / name(3), 3, **other)
    with pytest.raises(SystemExit):
        run_command("average", [str(run), "--last", "2"])
    assert f"step-00000003: cannot be averaged with step-00000004: {message}" in capsys.readouterr().err
    assert not (run / "averages").exists()


def test_settings_of_the_training_may_differ(run: Path) -> None:
    (run / name(3)).rename(run / "unused")
    write(run / name(3), 3, resume=True, optim={"learning_rate": 1.0})
    assert run_command("average", [str(run), "--last", "2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--last", "5"], "got --last 5, the run has 4 checkpoints; trainer.keep_last=5 keeps more"),
        (
            ["--best", "4"],
            "got --best 4, the run has 3 checkpoints that were validated; trainer.keep_best=4 keeps more",
        ),
        (["--last", "0"], "got 0, expected 1 or more"),
        (["--last", "2", "--out", "."], ".: is there already; --out names another folder"),
        ([], "one of the arguments --last --best is required"),
    ],
)
def test_what_cannot_be_averaged(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run_command("average", [str(run), *arguments])
    assert message in capsys.readouterr().err


def test_damage_and_no_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name(4) / "model.safetensors").write_bytes(b"")
    for folder, message in ((run, "model.safetensors: damaged"), (run / "checkpoints", "no checkpoint here")):
        with pytest.raises(SystemExit):
            run_command("average", [str(folder), "--last", "2"])
        assert message in capsys.readouterr().err


def test_a_run_of_a_former_version(run: Path) -> None:
    index = checkpoint.read_index(run)
    del index["wers"]
    checkpoint.write_index(run, index)
    assert run_command("average", [str(run), "--best", "1"]) == 0
    assert (run / "averages" / "best-1-step-00000002").is_dir()
