"""Checkpoints: whole or not there, every byte checked, nothing executed on loading."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from asr import checkpoint, model
from asr.config import to_yaml
from asr.config.schema import Config, Text
from asr.errors import CheckpointError
from asr.metrics.calibration import Calibration
from asr.text.tokenizer import build_tokenizer

CONFIG = Config.model_validate(
    {
        "features": {"num_mels": 8},
        "front_end": {"layers": [{"channels": 2, "time_kernel": 3, "frequency_kernel": 3}]},
        "stack": {"name": "gru", "num_layers": 1, "hidden_size": 4},
    }
)
TOKENIZER = build_tokenizer(Text(), ["abc"])


def saved(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(1)
    weights = model.build(CONFIG, TOKENIZER.num_tokens).state_dict()
    arguments = {"weights": weights, "config": CONFIG, "tokenizer": TOKENIZER, "provenance": {"step": 3}} | settings
    checkpoint.save(folder, **arguments)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    folder = saved(tmp_path / "runs" / "step-1", trainer={"moments": torch.ones(3)})
    loaded = checkpoint.load(folder)
    torch.manual_seed(1)
    for name, tensor in model.build(CONFIG, TOKENIZER.num_tokens).state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert to_yaml(loaded.config) == to_yaml(CONFIG)
    assert loaded.tokenizer.pieces == TOKENIZER.pieces
    assert loaded.provenance == {"step": 3}
    assert not loaded.model.training


def test_sums_are_sha256sums_own_format(tmp_path: Path) -> None:
    lines = (saved(tmp_path / "c") / "SHA256SUMS").read_text().splitlines()
    assert [line[64:66] for line in lines] == ["  "] * len(lines)
    assert {line[66:] for line in lines} == {"config.yaml", "model.safetensors", "provenance.json", "tokenizer.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json", "provenance.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    file = saved(tmp_path / "c") / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.unlink() if damage == "remove" else file.write_bytes(data[:-1] if damage == "truncate" else data)
    with pytest.raises(CheckpointError, match=rf"{name}: damaged: got"):
        checkpoint.load(tmp_path / "c")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", weights={"stack.layers.0.recurrent": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model.safetensors: the weights do not fit"):
        checkpoint.load(folder)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved(tmp_path / "step-1")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"step-2: the checkpoint could not be written.*No space left"):
        saved(tmp_path / "step-2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]
    checkpoint.load(old)


def test_nothing_is_executed(tmp_path: Path) -> None:
    """A pickle in the weights' place, and a YAML tag in the configuration's, are refused unread."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    folder = saved(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    resum(folder)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)
    folder = saved(tmp_path / "d")
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'exploded'}']\n")
    resum(folder)
    with pytest.raises(Exception, match=r"config.yaml"):
        checkpoint.load(folder)
    assert not (tmp_path / "exploded").exists()


def resum(folder: Path) -> None:
    """Write the checksums anew, as someone who means harm would."""
    import hashlib

    files = sorted(file for file in folder.iterdir() if file.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_find(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints" / "step-1")
    saved(tmp_path / "checkpoints" / "step-2")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.find(tmp_path)
    checkpoint.write_index(tmp_path, {"last": "checkpoints/step-2"})
    assert checkpoint.find(tmp_path).name == "step-2"
    checkpoint.write_index(tmp_path, {"last": "checkpoints/step-2", "best": "checkpoints/step-1"})
    assert checkpoint.find(tmp_path).name == "step-1"
    assert checkpoint.find(tmp_path / "checkpoints" / "step-2").name == "step-2"
    (tmp_path / "checkpoints.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoints.json: not JSON"):
        checkpoint.find(tmp_path)


def test_what_is_no_folder_or_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "c")
    for path in (folder / "model.safetensors", folder / "config.yaml" / "x"):
        with pytest.raises(CheckpointError, match=f"{path.name}: no checkpoint here"):
            checkpoint.load(path)
    with pytest.raises(CheckpointError, match="xxx: cannot be read: File name too long"):
        checkpoint.load(tmp_path / ("x" * 300))
    (tmp_path / "checkpoints.json").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoints\.json: cannot be read: Is a directory"):
        checkpoint.load(tmp_path)

    def denied(file: Path, *args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    sums = checkpoint.read_sums(folder)
    monkeypatch.setattr(checkpoint, "read_sums", lambda folder: sums)
    monkeypatch.setattr(Path, "open", denied)  # root may read files of any mode
    with pytest.raises(CheckpointError, match=r"config\.yaml: cannot be read: Permission denied"):
        checkpoint.load(folder)


def test_what_only_resuming_needs_may_be_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", trainer={"moments": torch.ones(3)})
    (folder / "trainer.pt").unlink()
    assert checkpoint.load(folder).provenance == {"step": 3}
    with pytest.raises(CheckpointError, match=r"trainer\.pt: damaged: got sha256 no such file"):
        checkpoint.verify(folder)
    (folder / "trainer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: damaged"):
        checkpoint.load(folder)


def test_extra_tensors_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    torch.manual_seed(1)
    weights = model.build(CONFIG, TOKENIZER.num_tokens).state_dict() | {"more": torch.ones(1)}
    save_file(weights, folder / "model.safetensors")
    resum(folder)
    with pytest.raises(CheckpointError, match="more"):
        checkpoint.load(folder)
    assert json.loads((folder / "provenance.json").read_text()) == {"step": 3}


def test_a_calibration_is_kept_beside_what_has_checksums(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    assert checkpoint.load(folder).calibration is None
    for calibration in (Calibration(0.5, -0.25, 0.04, -0.1), Calibration(2.0)):
        checkpoint.write_calibration(folder, calibration)
        assert checkpoint.load(folder).calibration == calibration


@pytest.mark.parametrize("text", ["", "[1]", '{"slope": "x"}', '{"steepness": 1}', "null"])
def test_a_broken_calibration_is_named(tmp_path: Path, text: str) -> None:
    folder = saved(tmp_path / "c")
    (folder / "calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"calibration\.json: expected .* slope, bias, start_delay_seconds"):
        checkpoint.load(folder)


@pytest.mark.parametrize("lines", [0, 1, 3, 4])
def test_checksums_that_were_cut_off_are_damage(tmp_path: Path, lines: int) -> None:
    """At a line's end: what is left is sound."""
    folder = saved(tmp_path / "c", trainer={"moments": torch.ones(3)})
    checkpoint.verify(folder)
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line + "\n" for line in sums.read_text().splitlines()[:lines]))
    with pytest.raises(CheckpointError, match="SHA256SUMS: damaged: it lacks"):
        checkpoint.verify(folder)
