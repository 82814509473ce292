"""`train_tones` where memory does not suffice for some utterances: `python -m ... ID:EPOCH:WHERE ... KEY=VALUE ...`."""

import errno
import os
import sys
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from asr.train.measures import Measures
from asr.train.task import CtcTask
from asr.types import Batch
from tests.support import train_tones


class FullBackward(torch.autograd.Function):
    """Lets a loss through; its gradient needs more memory than there is."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def run_short(faults: dict[tuple[str, int], str]) -> None:
    """Have the task fail from now on.

    Args:
        faults: utterance and epoch -> "forward", "backward", or "inside" for an error in the middle of the backward
            pass, when a part of the gradients is there; "validation" for one there, where the batch has others too.
    """
    loss_of = CtcTask._loss

    def loss(self: CtcTask, batch: Batch) -> Tensor:
        kinds = {faults.get((name, self.current_epoch)) for name in batch.ids}
        if "inside" in kinds:
            full = self.model.stack.register_forward_hook(
                lambda module, args, out: (FullBackward.apply(out[0]), out[1])
            )
            value = loss_of(self, batch)
            full.remove()
            return value
        value = loss_of(self, batch)  # the running statistics have moved by now
        if "forward" in kinds:
            torch.empty(1 << 60, dtype=torch.uint8)  # more than any machine has: the CPU allocator's own error
        return FullBackward.apply(value) if "backward" in kinds else value  # type: ignore[return-value]

    CtcTask._loss = loss  # type: ignore[method-assign]
    recognise = CtcTask._recognise

    def recognise_few(self: CtcTask, batch: Batch) -> list[str]:
        full = len(batch.ids) > 1 and any(faults.get((name, self.current_epoch)) for name in batch.ids)
        with patch.object(self.model, "forward", _fail) if full else nullcontext():
            return recognise(self, batch)

    CtcTask._recognise = recognise_few  # type: ignore[method-assign]


def _full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fail(*args: object) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


if __name__ == "__main__":
    given = [word.split(":") for word in sys.argv[1:] if "=" not in word]
    run_short({(name, int(epoch)): kind for name, epoch, kind in given if name != "all"})
    for _, _, kind in (row for row in given if row[0] == "all"):  # no single batch is to blame
        owner, name = {"momenta": (CtcTask, "configure_optimizers")}.get(kind, (Measures, "read"))
        setattr(owner, name, _full_disk if kind == "disk" else _fail)
    train_tones.main([word for word in sys.argv[1:] if "=" in word])
