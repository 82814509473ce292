"""A checkpoint is one self-contained folder: weights, configuration, tokenizer, provenance, and a checksum of each.

    step-00001200/
      model.safetensors   weights for use (the average, if one is kept)
      config.yaml         the whole configuration
      tokenizer.json      the tokens and how text becomes them
      provenance.json     versions, command, step, validation figures
      trainer.pt          optimiser and loops, to resume; not needed to decode
      SHA256SUMS          as `sha256sum --check` reads it, of all above
      calibration.json    of confidences and word times, if measured (`asr calibrate`)

Loading executes nothing: safetensors, YAML and JSON only (`trainer.pt` is read by `torch.load(weights_only=True)`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import __version__
from asr.atomic import atomic_write, fsync_folder
from asr.config import Config, from_yaml, to_yaml
from asr.errors import CheckpointError
from asr.metrics.calibration import Calibration
from asr.text.tokenizer import Tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    from asr.model import SpeechModel

WEIGHTS, CONFIG, TOKENIZER, PROVENANCE, TRAINER, SUMS = (
    "model.safetensors", "config.yaml", "tokenizer.json", "provenance.json", "trainer.pt", "SHA256SUMS",
)  # fmt: skip
CALIBRATION = "calibration.json"
INDEX = "checkpoints.json"  # in a run folder: which checkpoint is the best and which the last


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint folder holds, read into memory."""

    model: SpeechModel
    config: Config
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    folder: Path
    calibration: Calibration | None = None


def save(
    folder: Path,
    *,
    weights: dict[str, Any],
    config: Config,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    trainer: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder. It appears whole, with every byte on disk, or not at all.

    Args:
        folder: must not exist yet.
        weights: name -> tensor of the model.
        config: what the model was built from.
        tokenizer: likewise.
        provenance: JSON values.
        trainer: what resuming needs besides, for `torch.save`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    import torch
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(to_yaml(config))
        (temporary / TOKENIZER).write_text(tokenizer.to_json())
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")
        if trainer is not None:
            torch.save(trainer, temporary / TRAINER)
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(temporary.iterdir()))
        (temporary / SUMS).write_text(sums)
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        fsync_folder(temporary)
        temporary.rename(folder)
        fsync_folder(folder.parent)
    except (OSError, RuntimeError) as error:  # torch.save and safetensors report a full disk as RuntimeError too
        free = _free_mebibytes(folder.parent)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written: {error} ({free} on that disk); older ones are as before"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _free_mebibytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free"
    except OSError:
        return "no such folder"


def versions() -> dict[str, str]:
    """What writes a checkpoint, for its provenance."""
    import torch

    return {
        "asr": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(sys.argv),
    }


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint folder, or a run folder's best one, and check every byte of it.

    Raises:
        CheckpointError: nothing is there, or it is damaged, or of another make.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from asr import model as speech_model

    folder = find(Path(path))
    verify(folder, to_resume=False)
    config = from_yaml((folder / CONFIG).read_text(), source=str(folder / CONFIG))
    tokenizer = read_tokenizer(folder)
    model = speech_model.build(config, tokenizer.num_tokens)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: the weights do not fit the model in {CONFIG}: {error}") from error
    provenance = json.loads((folder / PROVENANCE).read_text())
    return Checkpoint(model.eval(), config, tokenizer, provenance, folder, read_calibration(folder))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    return tokenizer_from_json((folder / TOKENIZER).read_text())


def read_calibration(folder: Path) -> Calibration | None:
    """What was measured about the checkpoint's words; None if nothing was.

    Raises:
        CheckpointError: the file is not what `write_calibration` writes.
    """
    file = folder / CALIBRATION
    try:
        values = json.loads(file.read_text())
        return Calibration(**{name: float(value) for name, value in values.items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        names = ", ".join(field.name for field in fields(Calibration))
        raise CheckpointError(f"{file}: expected a JSON object with the numbers {names}: {error}") from error


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Put it into the checkpoint folder, in the place of an earlier one.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        with atomic_write(folder / CALIBRATION) as handle:
            handle.write((json.dumps(asdict(calibration), indent=1) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{folder / CALIBRATION}: cannot be written: {error}") from error


def find(path: Path) -> Path:
    """The checkpoint folder that `path` names: itself, or a run folder's best, else last.

    Raises:
        CheckpointError: there is none.
    """
    try:
        if (path / SUMS).is_file():
            return path
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    index = read_index(path)
    for role in ("best", "last"):
        if role in index:
            return path / index[role]
    raise CheckpointError(
        f"{path}: no checkpoint here; expected a run folder (with {INDEX}) or a checkpoint folder (with {SUMS})"
    )


def read_index(run: Path) -> dict[str, Any]:
    """The run's `checkpoints.json`; empty if there is none.

    Raises:
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads((run / INDEX).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"{run / INDEX}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{run / INDEX}: not JSON: {error}") from error


def validation_wers(index: dict[str, Any]) -> dict[str, float]:
    """Validation word error rates of the checkpoints in a run's index, of those that have one."""
    # A former version wrote only that of the best.
    return index.get("wers", {index["best"]: index["best_wer"]} if "best" in index else {})


def write_index(run: Path, index: dict[str, Any]) -> None:
    """Replace the run's `checkpoints.json` in one step."""
    with atomic_write(run / INDEX) as handle:
        handle.write((json.dumps(index, indent=1) + "\n").encode())


def verify(folder: Path, *, to_resume: bool = True) -> None:
    """Compare every file with its checksum.

    Args:
        folder: of the checkpoint.
        to_resume: whether what only resuming needs has to be there, if it was written.

    Raises:
        CheckpointError: a file is missing, or cannot be read, or differs, or has no checksum; the message names it.
    """
    sums = read_sums(folder)
    for name in (WEIGHTS, CONFIG, TOKENIZER, PROVENANCE, TRAINER):
        if name not in sums and (name != TRAINER or (folder / TRAINER).exists()):
            raise CheckpointError(f"{folder / SUMS}: damaged: it lacks {name}; take another checkpoint of this run")
    for name, expected in sums.items():
        file = folder / name
        try:
            if name == TRAINER and not to_resume and not file.exists():
                continue
            got = _sha256(file) if file.is_file() else "no such file"
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if got != expected:
            raise CheckpointError(
                f"{file}: damaged: got sha256 {got}, {SUMS} says {expected}; take another checkpoint of this run"
            )


def read_sums(folder: Path) -> dict[str, str]:
    """File -> sha256 that a checkpoint's SHA256SUMS says it has.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / SUMS}: cannot be read: {error}") from error
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
