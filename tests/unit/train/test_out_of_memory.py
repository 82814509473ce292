"""A batch that memory does not suffice for changes nothing, is named, and is left out when the run is resumed."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from asr.config.schema import Optim
from asr.data.loader import BatchDataset
from asr.errors import TrainingError
from asr.metrics.error_rates import Edits
from asr.train.out_of_memory import SkippedBatches, is_out_of_memory, remembered, run_is_short, state_bytes
from asr.train.task import CtcTask
from asr.types import Batch
from tests.support.train_short_of_memory import run_short
from tests.unit.train.test_guard import OPTIMS, batch_of, state, task_of


def error_of(function: Any) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (error_of(lambda: torch.empty(1 << 60, dtype=torch.uint8)), True),  # more than any machine has
        (error_of(lambda: bytearray(1 << 62)), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.distributed.DistBackendError("NCCL error ... Last error: Cuda failure 2 'out of memory'"), True),
        (torch.distributed.DistBackendError("NCCL error ... remote process exited"), False),
        (error_of(lambda: torch.zeros(2) @ torch.zeros(3)), False),
        (error_of(lambda: torch.empty(1 << 62)), False),  # a size that is no size: somebody's mistake
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def step(task: CtcTask, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """As Lightning does it: the gradients are cleared between forward and backward."""
    loss = task.training_step(batch, 0)
    optimizer.zero_grad()
    task.backward(loss)
    task.configure_gradient_clipping(optimizer)
    optimizer.step()


@pytest.mark.parametrize("optim", OPTIMS, ids=["adamw", "sgd", "no clipping"])
@pytest.mark.parametrize("where", ["forward", "backward", "inside", "left out"])
def test_it_changes_nothing(optim: Optim, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = batch_of(2)
    task = task_of(optim)
    task.may_skip = True
    optimizer = task.configure_optimizers()
    step(task, optimizer, batch_of(1))
    before = state(task, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(CtcTask, "_loss", CtcTask._loss)  # so that it is as before afterwards
        if where == "left out":
            patch.setattr(CtcTask, "_loss", None)  # not even tried
            task.leave_out = True
        else:
            run_short({("a", 0): where})
        step(task, optimizer, short)
    assert task.guard.abandoned
    assert float(task.guard.skipped) == 1.0
    assert task.losses.shape == (2,)
    assert bool(task.losses.isnan().all())
    assert all(torch.equal(one, other) for one, other in zip(before, state(task, optimizer), strict=True))

    # and the next step is as if that had never been
    task.leave_out = False
    other = task_of(optim)
    other_optimizer = other.configure_optimizers()
    for batch in (batch_of(1), batch_of(3)):
        step(other, other_optimizer, batch)
    step(task, optimizer, batch_of(3))
    assert not task.guard.abandoned
    after = state(task, optimizer)
    assert all(torch.equal(one, two) for one, two in zip(after, state(other, other_optimizer), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_the_very_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no gradient at all then, and no state of the optimiser."""
    task = task_of(Optim())
    optimizer = task.configure_optimizers()
    before = state(task, optimizer)
    task.leave_out = True
    step(task, optimizer, batch_of(1))
    assert all(torch.equal(one, other) for one, other in zip(before, state(task, optimizer), strict=True))


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(Optim())
    task.may_skip = True
    monkeypatch.setattr(task, "_loss", lambda batch: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        task.training_step(batch_of(1), 0)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_without_somebody_to_name_it_it_is_an_error(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(Optim())
    monkeypatch.setattr(CtcTask, "_loss", CtcTask._loss)
    run_short({("a", 0): where})
    with pytest.raises(RuntimeError) as caught:
        step(task, task.configure_optimizers(), batch_of(1))
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_no_step_of_the_optimiser_allocates(name: str) -> None:
    """All is there before the first one, as torch itself would have made it then."""
    task = task_of(Optim(name=name, ema_decay=0.9, gradient_clip=0.0, weight_decay=0.1))
    optimizer = task.configure_optimizers()
    theirs = copy.deepcopy(task.model)
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() > 1) is decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    options = {"betas": task.optim.betas} if name == "adamw" else {"momentum": task.optim.momentum, "nesterov": True}
    lazy = kinds[name](groups, lr=task.optim.learning_rate, fused=True, **options)
    before = {id(value): value.shape for row in optimizer.state.values() for value in row.values()}
    assert before
    for _ in range(3):
        for one, other in zip(task.model.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        lazy.step()
    assert {id(value): value.shape for row in optimizer.state.values() for value in row.values()} == before
    for one, other in zip(task.model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert optimizer.state[one].keys() == lazy.state[other].keys()
        for key, value in lazy.state[other].items():
            assert torch.equal(optimizer.state[one][key], value)
            assert optimizer.state[one][key].dtype == value.dtype


def validated(task: CtcTask, batch: Batch, monkeypatch: pytest.MonkeyPatch, fits: Any) -> list[Edits]:
    """Edits of a validation in which a forward pass has room for the batches that `fits` says."""

    def forward(audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not fits(audio):
            torch.empty(1 << 60, dtype=torch.uint8)
        return forward_of(audio, lengths)

    forward_of = task.model.forward
    task.eval()
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(task.model, "forward", forward)
        task.on_validation_epoch_start()
        task.validation_step(batch, 0)
    return task.edits


def three() -> Batch:
    audio = torch.randn(3, 24000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([24000, 9000, 16000])
    none = torch.zeros(3, dtype=torch.int64)
    texts = ("ab", "abc ab", "c a")
    return Batch(audio, lengths, none[:, None][:, :0], none, none, ("x", "y", "z"), texts, 49000 / 16000, 1)


@pytest.mark.parametrize("room", [3, 2, 1])
def test_validation_takes_as_much_at_a_time_as_there_is_room_for(
    room: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(Optim())
    expected = validated(task, three(), monkeypatch, lambda audio: True)
    assert expected[0].total
    capsys.readouterr()
    assert validated(task, three(), monkeypatch, lambda audio: len(audio) <= room) == expected
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 - room
    if said:
        assert said[0].startswith(
            "validation: out of memory on 3 utterances of up to 1.5 s (x, y, z): taken in halves."
        )


def test_an_utterance_too_long_to_validate_counts_as_not_recognised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the padding that it does not need itself, "y" fits."""
    task = task_of(Optim())
    words = validated(task, three(), monkeypatch, lambda audio: audio.shape[1] <= 16000)[0]
    assert "validation: out of memory on 1 utterance of up to 1.5 s (x): counts as not" in capsys.readouterr().err
    others = validated(task, three().part(slice(1, None)), monkeypatch, lambda audio: True)[0]
    assert words == others + Edits(deletions=1, reference_length=1)


def test_a_part_of_a_batch() -> None:
    whole = three()
    part = whole.part(slice(1, 3))
    assert (part.ids, part.texts, part.audio.shape) == (("y", "z"), ("abc ab", "c a"), (2, 16000))
    assert part.seconds == pytest.approx(25000 / 16000)
    assert torch.equal(part.audio, whole.audio[1:, :16000])


def test_what_else_is_short_of_memory_says_what_to_do(tmp_path: Path) -> None:
    task = task_of(Optim(ema_decay=0.9))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")
    text = str(run_is_short(error, run=tmp_path, step=0, task=task))
    assert "before the first batch: training needs 0.00 GiB for 0.00 M parameters, their gradients, momenta and" in text
    assert "average (CUDA out of memory. Tried to allocate 20.00 GiB). Take a smaller model" in text
    task.may_skip = True
    text = str(run_is_short(error, run=tmp_path, step=7, task=task))
    assert text.startswith("step 7: out of memory outside of the model's own passes (CUDA out of memory. Tried")
    assert f"run_dir={tmp_path} resume=true" in text


@pytest.mark.parametrize(
    "optim", [Optim(ema_decay=0.9), Optim(), Optim(name="sgd"), Optim(name="sgd", momentum=0.0)], ids=str
)
def test_how_much_a_training_holds(optim: Optim) -> None:
    task = task_of(optim)
    optimizer = task.configure_optimizers()
    step(task, optimizer, batch_of(1))
    held = [tensor for p in task.model.parameters() for tensor in (p, p.grad, *optimizer.state[p].values())]
    if task.average is not None:
        held += [task.average.tensors[name] for name, _ in task.model.named_parameters()]
    assert state_bytes(task) == sum(tensor.nbytes for tensor in held if tensor is not None and tensor.dim())


def dataset() -> BatchDataset:
    """Utterances 0a 0b 1a 1b ...: batch n of an epoch has two, and each epoch begins one batch earlier."""
    ids = [f"{batch}{letter}" for batch in range(20) for letter in "ab"]
    corpus = SimpleNamespace(ids=ids, sample_rate_hz=16000)
    order = np.arange(40).reshape(20, 2)
    plan = SimpleNamespace(batches=lambda epoch: list(np.roll(order, -epoch, axis=0)))
    return cast(BatchDataset, SimpleNamespace(corpus=corpus, plan=plan))


class Run:
    """Steps that a callback sees, "x" for one that runs out of memory."""

    def __init__(self, callback: SkippedBatches, *, world_size: int = 1, pieces: int = 1) -> None:
        self.callback, self.pieces = callback, pieces
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            current_epoch=1,
            global_rank=0,
            world_size=world_size,
            is_global_zero=True,
            accumulate_grad_batches=pieces,
            strategy=SimpleNamespace(broadcast=lambda value: value),
        )
        self.task: Any = SimpleNamespace(guard=SimpleNamespace(abandoned=False), leave_out=False)
        self.left_out: list[int] = []
        callback.on_train_start(self.trainer, self.task)

    def __call__(self, flags: str) -> None:
        for index, flag in enumerate(flags):
            number = index // self.pieces
            batch = batch_of(index)
            object.__setattr__(batch, "ids", (f"{number + 1}a", f"{number + 1}b"))
            self.callback.on_train_batch_start(self.trainer, self.task, batch, index)
            if index % self.pieces == 0:
                self.task.guard.abandoned = False
            if self.task.leave_out:
                self.left_out.append(number)
            self.task.guard.abandoned |= self.task.leave_out or flag == "x"
            self.trainer.global_step = (index + 1) // self.pieces
            self.callback.on_train_batch_end(self.trainer, self.task, None, batch, index)
        self.callback.on_train_end(self.trainer, self.task)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "skipped-0.jsonl").read_text().splitlines()]


def test_each_is_named_and_written_down_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2))("..x.xx")
    assert [row["step"] for row in rows(tmp_path)] == [3, 5, 6]
    assert rows(tmp_path)[0] == {
        "reason": "out of memory",
        "step": 3,
        "epoch": 1,
        "batch": 2,
        "ids": ["3a", "3b"],
        "seeds": [1, 2],
        "longest_seconds": 0.5,
    }
    errors = capsys.readouterr().err
    assert "step 3 skipped: out of memory on 2 utterances of up to 0.5 s (3a, 3b); nothing was changed" in errors
    assert "steps of this run that were skipped because they ran out of memory: 3;" in errors


def test_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 5: 3 steps in a row ran out of memory.*data.batch_seconds"):
        Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2))("x.xxx")
    assert len(rows(tmp_path)) == 4


def test_a_resumed_run_leaves_them_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2))("..x.x.")
    capsys.readouterr()
    resumed = Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2))
    resumed("......")
    assert resumed.task.may_skip
    assert resumed.left_out == [2, 4]
    assert len(rows(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert "step 3 skipped: its batch ran out of memory before" in errors
    assert "skipped because they ran out of memory: 2;" in errors


def test_pieces_of_a_step_are_left_out_together(tmp_path: Path) -> None:
    Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2), pieces=2)("...x..")
    assert [(row["step"], row["batch"], row["ids"]) for row in rows(tmp_path)] == [(2, 1, ["2a", "2b", "2a", "2b"])]
    resumed = Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2), pieces=2)
    resumed("......")
    assert resumed.left_out == [1, 1]


@pytest.mark.parametrize("pieces", [1, 2])
def test_of_several_ranks_all_stop(tmp_path: Path, pieces: int) -> None:
    run = Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2), world_size=2, pieces=pieces)
    with pytest.raises(TrainingError, match=r"rank 0 ran out of memory on 2 utterances .*resume=true run_dir="):
        run("." * pieces + "x" * pieces)
    assert [(row["step"], row["ids"]) for row in rows(tmp_path)] == [(2, ["2a", "2b"])]
    resumed = Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=2), world_size=2, pieces=pieces)
    resumed("." * 3 * pieces)
    assert resumed.left_out == [1] * pieces


def test_what_other_settings_made_of_it_is_not_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"reason": "out of memory", "step": 3, "epoch": 1, "batch": 2, "ids": ["3a", "4b"]}
    far = row | {"batch": 99, "ids": []}
    other = {"reason": "not finite", "step": 3, "epoch": 1, "batch": 2, "ids": ["3a"]}
    good = row | {"ids": ["3b"], "epoch": 1}  # one rank's share of the batch
    lines = [json.dumps(one) for one in (row, far, other, good)]
    (tmp_path / "skipped-1.jsonl").write_text("\n".join(lines) + "\n" + lines[3][:20])
    assert remembered(tmp_path, dataset()) == {(1, 2)}
    errors = capsys.readouterr().err
    assert errors.count("ran out of memory with other settings or data; it is not left out") == 2
    assert "skipped-1.jsonl:5: cut off" in errors


def test_a_run_without_any_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(SkippedBatches(tmp_path, dataset(), most_in_a_row=0))("......")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""
