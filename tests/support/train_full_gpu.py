"""`train_tones` on a GPU whose memory is full for some utterances: `python -m ... ID:EPOCH:WHERE ... KEY=VALUE ...`.

WHERE is "forward" or "backward". The memory is given back when the error has come, as a batch's own would be.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from asr.train import task
from asr.train.out_of_memory import is_out_of_memory
from asr.train.task import CtcTask
from asr.types import Batch
from tests.support import train_tones

SIZES = (1 << 24, 1 << 21, 1 << 18, 512)  # bytes
held: list[Tensor] = []


def fill() -> None:
    """Allow no more memory than there is, and take all that is free of it."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    for size in SIZES:
        try:
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            pass


def give_back() -> None:
    held.clear()
    torch.cuda.set_per_process_memory_fraction(1.0)


class FillInBackward(torch.autograd.Function):
    """Lets a loss through; its gradient fills the memory."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        fill()
        return gradient


def run_full(faults: dict[tuple[str, int], str]) -> None:
    """Have memory be full from now on for these utterances and epochs."""
    loss_of = CtcTask._loss

    def loss(self: CtcTask, batch: Batch) -> Tensor:
        kinds = {faults.get((name, self.current_epoch)) for name in batch.ids}
        if "forward" in kinds:
            fill()
        value = loss_of(self, batch)
        return FillInBackward.apply(value) if "backward" in kinds else value  # type: ignore[return-value]

    def judge(error: BaseException) -> bool:
        give_back()
        return is_out_of_memory(error)

    CtcTask._loss = loss  # type: ignore[method-assign]
    task.is_out_of_memory = judge


if __name__ == "__main__":
    given = [word.split(":") for word in sys.argv[1:] if "=" not in word]
    run_full({(name, int(epoch)): kind for name, epoch, kind in given})
    train_tones.main([word for word in sys.argv[1:] if "=" in word])
