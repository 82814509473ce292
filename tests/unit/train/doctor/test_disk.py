"""Room for checkpoints, against what they really take."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from asr import model
from asr.text.tokenizer import build_tokenizer
from asr.train.doctor.disk import check_disk, checkpoint_bytes
from asr.train.doctor.report import Verdict
from asr.train.task import CtcTask
from tests.support.doctor import tiny_config

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("optim", [{"name": "adamw"}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.0}])
def test_size_of_a_checkpoint(tmp_path: Path, optim: dict[str, Any], ema_decay: float) -> None:
    """As `asr.train.checkpoints` writes it: weights for use; optimiser, raw weights and average to resume."""
    config = tiny_config(optim=optim | {"ema_decay": ema_decay}, stack={"name": "gru", "hidden_size": 100})
    tokenizer = build_tokenizer(config.text, ["abc"])
    task = CtcTask(
        model.build(config, tokenizer.num_tokens), tokenizer, config.optim, seed=1, steps_per_epoch=1, total_steps=1
    )
    optimizer = task.configure_optimizers()
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state: dict[str, Any] = {"use": task.model.state_dict(), "optimizer": optimizer.state_dict()}
    if task.average is not None:
        state |= {"raw": {name: p.clone() for name, p in task.model.state_dict().items()}}
        state |= {"average": task.average.tensors}
    torch.save(state, tmp_path / "all.pt")
    expected = checkpoint_bytes(config, sum(p.numel() for p in task.model.parameters()))
    assert expected > 1e5
    assert (tmp_path / "all.pt").stat().st_size == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(79_999, Verdict.ERROR), (80_000, Verdict.WARNING), (159_999, Verdict.WARNING), (160_000, Verdict.OK)],
)
def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict) -> None:
    """1000 weights, AdamW, an average: 20 kB each of the last two, the best, and the one that is being written."""
    asked = []

    def disk_usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(10**6, 10**6 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    config = tiny_config(optim={"ema_decay": 0.9}, trainer={"keep_last": 2})
    line = check_disk(config, tmp_path / "not" / "yet", 1000)
    assert (line.verdict, line.figures["needed_bytes"], asked) == (verdict, 80_000, [tmp_path])
    assert ("trainer.keep_last=1" in line.fix) == (verdict is not Verdict.OK)
