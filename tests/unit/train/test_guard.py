"""A step that is not finite leaves no trace but its line in the run folder."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asr import model
from asr.config.schema import Config, Optim, Text
from asr.errors import TrainingError
from asr.text.tokenizer import build_tokenizer
from asr.train.guard import SkippedSteps, write_skipped
from asr.train.task import CtcTask
from asr.types import Batch

CONFIG = Config.model_validate(
    {
        "features": {"num_mels": 12},
        "front_end": {"layers": [{"channels": 3, "time_kernel": 3, "frequency_kernel": 3, "frequency_stride": 2}]},
        "stack": {"name": "gru", "num_layers": 1, "hidden_size": 8},
    }
)
OPTIMS = [Optim(), Optim(name="sgd", momentum=0.9), Optim(gradient_clip=0.0)]


def task_of(optim: Optim) -> CtcTask:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Text(), ["abc"])
    return CtcTask(
        model.build(CONFIG, tokenizer.num_tokens), tokenizer, optim, seed=1, steps_per_epoch=1, total_steps=1
    )


def batch_of(seed: int, spoilt: str = "") -> Batch:
    random = torch.Generator().manual_seed(seed)
    audio = torch.randn(2, 8000, generator=random)
    if spoilt:
        audio[1, 4000] = float(spoilt)
    targets = torch.tensor([[1, 2, 3], [2, 1, 0]])
    return Batch(
        audio,
        torch.tensor([8000, 7000]),
        targets,
        torch.tensor([3, 2]),
        torch.tensor([1, 2]),
        ("a", "b"),
        ("", ""),
        1.0,
        5,
    )


def step(task: CtcTask, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    task.training_step(batch, 0).backward()
    task.configure_gradient_clipping(optimizer)
    optimizer.step()


def state(task: CtcTask, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [value for row in optimizer.state.values() for value in row.values() if isinstance(value, torch.Tensor)]
    return [*copy.deepcopy(list(task.state_dict().values())), *copy.deepcopy(moments)]


@pytest.mark.parametrize("optim", OPTIMS, ids=["adamw", "sgd", "no clipping"])
@pytest.mark.parametrize("spoilt", ["nan", "inf"])
def test_what_is_not_finite_changes_nothing(optim: Optim, spoilt: str) -> None:
    task = task_of(optim)
    optimizer = task.configure_optimizers()
    step(task, optimizer, batch_of(1))
    before = state(task, optimizer)
    step(task, optimizer, batch_of(2, spoilt))
    assert float(task.guard.skipped) == 1.0
    assert all(torch.equal(one, other) for one, other in zip(before, state(task, optimizer), strict=True))

    # and the next step is as if that had never been
    other = task_of(optim)
    other_optimizer = other.configure_optimizers()
    for batch in (batch_of(1), batch_of(3)):
        step(other, other_optimizer, batch)
    step(task, optimizer, batch_of(3))
    assert float(task.guard.skipped) == 0.0
    after = state(task, optimizer)
    assert all(torch.equal(one, two) for one, two in zip(after, state(other, other_optimizer), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_first_step_of_sgd_that_is_refused_leaves_no_momenta_but_zeros() -> None:
    """Torch's fused SGD makes them of whatever the memory holds, and then does not write them."""
    tasks = [task_of(Optim(name="sgd", momentum=0.9)) for _ in range(2)]
    for task, seeds in zip(tasks, (["nan", ""], [""]), strict=True):
        optimizer = task.configure_optimizers()
        torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
        try:
            for spoilt in seeds:
                step(task, optimizer, batch_of(1, spoilt))
        finally:
            torch.use_deterministic_algorithms(False)
    for one, other in zip(tasks[0].model.parameters(), tasks[1].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_the_guard_it_would_spoil_all() -> None:
    task = task_of(Optim())
    optimizer = task.configure_optimizers()
    task.training_step(batch_of(2, "nan"), 0).backward()
    optimizer.step()
    assert not all(bool(tensor.isfinite().all()) for tensor in task.state_dict().values())


def run_steps(callback: SkippedSteps, flags: str) -> None:
    """Let the callback see steps, "x" for a refused one."""
    for number, flag in enumerate(flags, 1):
        trainer: Any = SimpleNamespace(
            global_step=number, current_epoch=0, global_rank=0, is_global_zero=True, accumulate_grad_batches=1
        )
        module = SimpleNamespace(guard=SimpleNamespace(skipped=torch.tensor(float(flag == "x")), abandoned=False))
        callback.on_train_batch_end(trainer, module, None, batch_of(number), number - 1)


def test_each_is_written_down_with_what_makes_its_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = SkippedSteps(tmp_path, every_steps=5, most_in_a_row=2)
    run_steps(callback, "..x.xx....")
    rows = [json.loads(line) for line in (tmp_path / "skipped-0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 5, 6]
    assert rows[0] == {
        "reason": "not finite",
        "step": 3,
        "epoch": 0,
        "batch": 2,
        "ids": ["a", "b"],
        "seeds": [1, 2],
    }
    assert "step 6 skipped" in capsys.readouterr().err


def test_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    callback = SkippedSteps(tmp_path, every_steps=5, most_in_a_row=2)
    with pytest.raises(TrainingError, match=r"step 5: 3 steps in a row .*skipped-\*\.jsonl"):
        run_steps(callback, "..xxx")
    assert len((tmp_path / "skipped-0.jsonl").read_text().splitlines()) == 3


def test_a_run_without_any_leaves_no_file(tmp_path: Path) -> None:
    run_steps(SkippedSteps(tmp_path, every_steps=3, most_in_a_row=0), ".......")
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = write_skipped(tmp_path, 0, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"st')
    write_skipped(tmp_path, 0, {"step": 2})
    write_skipped(tmp_path, 0, {"step": 3})
    assert path.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}', '{"step": 3}']
