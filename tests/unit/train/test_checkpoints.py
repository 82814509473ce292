"""Which checkpoints a run keeps, when one is due, and what stands in the way of a new one."""

import math
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from asr import checkpoint, model
from asr.config.schema import Config, Optim, Text
from asr.errors import CheckpointError
from asr.text.tokenizer import build_tokenizer
from asr.train.checkpoints import FolderIO, Interrupted, RunCheckpoints, with_checkpoint
from asr.train.task import CtcTask

WERS = st.one_of(st.none(), st.just(math.nan), st.sampled_from([0.0, 0.1, 0.2, 0.3]))


def name(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


@given(wers=st.lists(WERS, min_size=1, max_size=12), keep_last=st.integers(1, 4), keep_best=st.integers(1, 4))
def test_the_best_and_the_last_of_the_whole_history(wers: list[float | None], keep_last: int, keep_best: int) -> None:
    index: dict[str, Any] = {}
    for step, wer in enumerate(wers):
        index = with_checkpoint(index, name(step), wer, keep_last=keep_last, keep_best=keep_best)
        validated = [(w, s) for s, w in enumerate(wers[: step + 1]) if w is not None and not math.isnan(w)]
        best = sorted(validated)[:keep_best]  # of equal ones the earlier
        expected = {s for _, s in best} | set(range(max(0, step + 1 - keep_last), step + 1))
        assert index["kept"] == [name(s) for s in sorted(expected)]
        assert index["last"] == name(step)
        assert index["wers"] == {name(s): w for w, s in sorted(validated, key=lambda pair: pair[1]) if s in expected}
        assert index.get("best") == (name(best[0][1]) if best else None)
        assert index.get("best_wer") == (best[0][0] if best else None)


def test_an_index_of_a_former_version() -> None:
    before = {"best": name(1), "best_wer": 0.2, "last": name(3), "kept": [name(1), name(2), name(3)]}
    after = with_checkpoint(before, name(4), 0.3, keep_last=2, keep_best=2)
    assert after == {
        "best": name(1),
        "best_wer": 0.2,
        "last": name(4),
        "kept": [name(1), name(3), name(4)],
        "wers": {name(1): 0.2, name(4): 0.3},
    }


def test_damaged_ones_that_the_run_went_on_before_are_not_counted() -> None:
    index: dict[str, Any] = {}
    for step, wer in ((1, 0.4), (2, 0.3), (4, 0.1)):
        index = with_checkpoint(index, name(step), wer, keep_last=2, keep_best=1)
    index = with_checkpoint(index, name(3), None, keep_last=2, keep_best=1)  # 4 was damaged
    assert (index["last"], index["best"], index["kept"]) == (name(3), name(2), [name(2), name(3)])


def test_the_same_step_twice() -> None:
    index = with_checkpoint({}, name(1), None, keep_last=2, keep_best=1)
    index = with_checkpoint(index, name(1), 0.5, keep_last=2, keep_best=1)
    assert (index["kept"], index["best"]) == ([name(1)], name(1))


class Trainer(SimpleNamespace):
    """As much of Lightning's as `RunCheckpoints` sees; writes empty folders."""

    def __init__(self, world_size: int = 1) -> None:
        super().__init__(world_size=world_size, is_global_zero=True, global_step=0, callback_metrics={})
        self.accumulate_grad_batches = 1
        self.saved: list[int] = []

    def save_checkpoint(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.saved.append(self.global_step)


def test_when_one_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 25 s, one checkpoint a minute at least and each 5 steps."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    callback: Any = RunCheckpoints(tmp_path, every_steps=5, every_minutes=1.0, keep_last=2)
    trainer: Any = Trainer()
    callback.on_train_start(trainer, None)
    try:
        for trainer.global_step in range(1, 12):
            now += 25.0
            callback.on_train_batch_end(trainer, None, None, None, 0)
    finally:
        callback.teardown(trainer, None, "fit")
    assert trainer.saved == [3, 5, 8, 10]
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]


def test_a_validation_counts_for_its_own_epoch(tmp_path: Path) -> None:
    """Lightning's figure stays in the epochs without validation that follow."""
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, keep_last=9, keep_best=9)
    trainer: Any = Trainer()
    for trainer.global_step, wer in ((1, 0.5), (2, None), (3, 0.4), (4, None)):
        if wer is not None:
            trainer.callback_metrics["validation/wer"] = torch.tensor(wer)
            callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
    wers = checkpoint.read_index(tmp_path)["wers"]
    assert wers == {name(1): 0.5, name(3): pytest.approx(0.4)}


def test_what_a_killed_writer_left_is_removed_at_the_start(tmp_path: Path) -> None:
    for folder in (".step-00000002.123.tmp", "step-00000001", "mine"):
        (tmp_path / "checkpoints" / folder).mkdir(parents=True)
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, keep_last=1)
    callback.on_train_start(Trainer(), None)
    callback.teardown(Trainer(), None, "fit")
    assert {folder.name for folder in (tmp_path / "checkpoints").iterdir()} == {"step-00000001", "mine"}


@pytest.mark.parametrize(("signal_number", "is_due"), [(0, False), (15, False), (0, True)])
def test_ranks_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_number: int, is_due: bool) -> None:
    """A signal to any rank stops all, as where one machine of several is taken away; of the clocks rank 0's counts."""

    def all_reduce(tensor: torch.Tensor, operation: dist.ReduceOp, group: str) -> None:
        assert (operation, group, tensor.device.type) == (dist.ReduceOp.MAX, "the CPU's", "cpu")
        tensor.copy_(torch.maximum(tensor, torch.tensor([signal_number, is_due])))  # what other ranks say

    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: {"gloo": "the CPU's"}[backend])
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, every_minutes=1.0, keep_last=1)
    trainer: Any = Trainer(world_size=2)
    callback.on_train_start(trainer, None)
    callback.teardown(trainer, None, "fit")
    for trainer.is_global_zero in (True, False):
        for callback._saved_at_seconds in (time.monotonic(), time.monotonic() - 99.0):
            late = trainer.is_global_zero and time.monotonic() - callback._saved_at_seconds > 60
            for callback.signal_number in (0, 2):
                expected = max(signal_number, callback.signal_number), is_due or late
                assert callback._asked(trainer) == expected


def test_only_ctrl_c_may_be_asked_for_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SLURM signals every process of a job, and torchrun passes on to its workers what it got itself."""
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, keep_last=1)
    callback.on_train_start(Trainer(), None)
    try:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert callback._asked(Trainer())[0] == signal.SIGUSR1
        assert capsys.readouterr().err == "\nSIGUSR1: saving after this step, then stopping\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        callback.teardown(Trainer(), None, "fit")


def test_a_signal_in_validation_saves_the_training_and_not_the_average(tmp_path: Path) -> None:
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, keep_last=1)
    trainer: Any = Trainer()
    trainer.global_step = 7
    task: Any = SimpleNamespace(left=0)
    task.leave_validation = lambda: setattr(task, "left", task.left + 1)
    callback.on_validation_batch_start(trainer, task, None, 0)
    assert (trainer.saved, task.left) == ([], 0)
    callback.signal_number = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM"):
        callback.on_validation_batch_start(trainer, task, None, 1)
    assert (trainer.saved, task.left) == ([7], 1)
    assert checkpoint.read_index(tmp_path) == {"last": name(7), "kept": [name(7)], "wers": {}}  # its validation is due


def test_a_signal_in_the_last_batch_of_validation(tmp_path: Path) -> None:
    callback: Any = RunCheckpoints(tmp_path, every_steps=0, keep_last=1)
    trainer: Any = Trainer()
    trainer.global_step, callback.signal_number = 7, signal.SIGTERM
    with pytest.raises(Interrupted):
        callback.on_train_epoch_end(trainer, None)
    assert checkpoint.read_index(tmp_path)["epoch_ended_at"] == 7


CONFIG = Config.model_validate(
    {
        "features": {"num_mels": 8},
        "front_end": {"layers": [{"channels": 2, "time_kernel": 3, "frequency_kernel": 3}]},
        "stack": {"name": "gru", "num_layers": 1, "hidden_size": 4},
    }
)
TOKENIZER = build_tokenizer(Text(), ["abc"])


def folder_io(config: Config = CONFIG) -> FolderIO:
    task = CtcTask(
        model.build(CONFIG, TOKENIZER.num_tokens), TOKENIZER, Optim(), seed=1, steps_per_epoch=1, total_steps=1
    )
    return FolderIO(task, config, TOKENIZER, dict)


def test_a_step_saved_twice_is_written_once_and_a_damaged_one_anew(tmp_path: Path) -> None:
    folder, io = tmp_path / "checkpoints" / "step-00000001", folder_io()
    state = {"state_dict": io.task.state_dict(), "global_step": 0, "loops": {"fit_loop": {}}}
    io.save_checkpoint(state, folder)
    written = folder.stat().st_ino
    io.save_checkpoint(state, folder)
    assert folder.stat().st_ino == written

    resumed = folder_io()
    resumed.load_checkpoint(folder)
    resumed.save_checkpoint(state, folder)
    assert folder.stat().st_ino == written  # what it goes on from is never touched

    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify(folder)
    folder_io().save_checkpoint(state, folder)  # went on from before it
    checkpoint.verify(folder)


def test_the_tokens_of_a_run_cannot_be_changed(tmp_path: Path) -> None:
    """It would keep those that it began with, and say nothing."""
    folder, io = tmp_path / "checkpoints" / "step-00000001", folder_io()
    io.save_checkpoint({"state_dict": io.task.state_dict(), "global_step": 0, "loops": {"fit_loop": {}}}, folder)
    other = CONFIG.model_copy(update={"text": Text(tokenizer="bigrams", case="upper")})
    message = "other settings: text.tokenizer: got bigrams, expected characters; text.case: got upper, expected lower"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        folder_io(other).load_checkpoint(folder)
