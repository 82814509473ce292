"""`asr average RUN --last N | --best N`: one checkpoint of several of a run's, each weight their mean."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import checkpoint
from asr.config import Config, from_yaml
from asr.config.differences import differences
from asr.errors import CheckpointError
from asr.messages import positive

if TYPE_CHECKING:
    from torch import Tensor

MODEL = ("data.sample_rate_hz", "features", "front_end", "stack", "head")  # the settings that a model is built from


def main(argv: Sequence[str]) -> int:
    """Average, and print of what and where it is."""
    parser = argparse.ArgumentParser(
        prog="asr average",
        description="Average the weights of checkpoints of a run. The result is a checkpoint folder like any other, "
        "without what resuming needs.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--last", type=positive, metavar="N", help="the newest N")
    choice.add_argument("--best", type=positive, metavar="N", help="the N of the lowest validation WER")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/averages/last-N-... or best-N-...")
    options = parser.parse_args(argv)

    role, count = ("last", options.last) if options.last else ("best", options.best)
    members = choose(options.run, role, count)
    out = options.out or options.run / "averages" / f"{role}-{count}-{members[-1].folder.name}"
    average(members, out)
    print(f"averaged {len(members)} checkpoints of {options.run}:")
    for member in members:
        print(
            f"  {member.folder.name}" + ("" if math.isnan(member.wer) else f"  validation WER {100 * member.wer:.2f} %")
        )
    if any((member.folder / checkpoint.CALIBRATION).exists() for member in members):
        print(f"no {checkpoint.CALIBRATION} is taken over, as it belongs to one model: `asr calibrate {out} MANIFEST`")
    print(f"written: {out}; whether it is better, `asr evaluate {out} MANIFEST` tells")
    return 0


@dataclass(frozen=True, slots=True)
class Member:
    """A checkpoint to average, and its validation word error rate; NaN: it was not validated."""

    folder: Path
    wer: float


def choose(run: Path, role: str, count: int) -> list[Member]:
    """The `count` last or best checkpoints of a run, oldest first.

    Raises:
        CheckpointError: the run does not have so many.
    """
    index = checkpoint.read_index(run)
    if "last" not in index:
        raise CheckpointError(f"{run}: no checkpoint here; expected a run folder (with {checkpoint.INDEX})")
    wers = checkpoint.validation_wers(index)
    names = index["kept"] if role == "last" else sorted((n for n in index["kept"] if n in wers), key=wers.__getitem__)
    if len(names) < count:
        what = "checkpoints" if role == "last" else "checkpoints that were validated"
        raise CheckpointError(
            f"{run}: got --{role} {count}, the run has {len(names)} {what}; trainer.keep_{role}={count} keeps more"
        )
    chosen = names[-count:] if role == "last" else names[:count]
    return [Member(run / name, wers.get(name, math.nan)) for name in index["kept"] if name in chosen]


def average(members: Sequence[Member], out: Path) -> None:
    """Write the checkpoint of which each floating-point tensor is the mean of the members'.

    Sums are float64. Integers are the newest's. Running statistics of batch norm are averaged like weights, as peers
    do: each belongs to weights that the mean no longer has, so the mean of many far apart is best measured before use.

    Args:
        members: oldest first; configuration and tokenizer are the last one's.
        out: must not exist yet.

    Raises:
        CheckpointError: members differ in settings of the model or in tokens, one is damaged, or `out` exists.
    """
    from safetensors.torch import load_file

    if out.exists():
        raise CheckpointError(f"{out}: is there already; --out names another folder")
    newest = members[-1].folder
    config, tokenizer = _config(newest), checkpoint.read_tokenizer(newest)
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for folder in (member.folder for member in members):
        checkpoint.verify(folder, to_resume=False)
        others = differences(_config(folder), config, MODEL)
        if not others and (theirs := checkpoint.read_tokenizer(folder)).to_json() != tokenizer.to_json():
            others = [f"tokenizer: got {theirs.pieces[1:]}, expected {tokenizer.pieces[1:]}, or other settings of it"]
        if others:
            raise CheckpointError(f"{folder}: cannot be averaged with {newest.name}: {'; '.join(others)}")
        weights = load_file(folder / checkpoint.WEIGHTS)
        _add(sums, weights, folder)
    mean = {
        name: (sums[name] / len(members)).to(tensor.dtype) if name in sums else tensor
        for name, tensor in weights.items()
    }
    provenance: dict[str, Any] = json.loads((newest / checkpoint.PROVENANCE).read_text())
    averaged = [{"checkpoint": str(m.folder), "wer": None if math.isnan(m.wer) else m.wer} for m in members]
    provenance |= {**checkpoint.versions(), "metrics": {}, "averaged": averaged}
    checkpoint.save(out, weights=mean, config=config, tokenizer=tokenizer, provenance=provenance)


def _config(folder: Path) -> Config:
    return from_yaml((folder / checkpoint.CONFIG).read_text(), source=str(folder / checkpoint.CONFIG))


def _add(sums: dict[str, Tensor], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Add the floating-point tensors to `sums`; the first call makes them."""
    floating = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}
    if sums and {name: total.shape for name, total in sums.items()} != {n: t.shape for n, t in floating.items()}:
        raise CheckpointError(f"{folder}: holds other tensors than those before it")
    for name, tensor in floating.items():
        sums[name] = sums[name] + tensor if name in sums else tensor
