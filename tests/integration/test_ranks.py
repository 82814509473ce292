"""The same global batch on several ranks gives the same gradient and the same batch-norm statistics as on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from asr import model
from asr.config.schema import Config, Optim, Text
from asr.text.tokenizer import build_tokenizer
from asr.train.task import CtcTask
from asr.types import Batch

CONFIG = Config.model_validate(
    {
        "features": {"num_mels": 12},
        "front_end": {"layers": [{"channels": 3, "time_kernel": 3, "frequency_kernel": 3, "frequency_stride": 2}]},
        "stack": {"name": "gru", "num_layers": 2, "hidden_size": 8},
    }
)
TOKENIZER = build_tokenizer(Text(), ["abc"])
LENGTHS = torch.tensor([16000, 9000, 12000, 5000, 7000])
TARGETS = torch.randint(1, 5, (5, 6), generator=torch.Generator().manual_seed(0))
TARGET_LENGTHS = torch.tensor([6, 2, 5, 1, 3])
AUDIO = 0.1 * torch.randn(5, 16000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def share(rank: int, world_size: int) -> Batch:
    """A rank's items of the global batch, as `asr.data.loader` deals them; a stand-in where there are none."""
    rows = torch.arange(5)[rank::world_size]
    if not len(rows):
        empty = torch.zeros(1, dtype=torch.int64)
        return Batch(torch.zeros(1, 1).double(), empty, torch.zeros(1, 0).long(), empty, empty, (), (), 0.0)
    ids = tuple(map(str, rows))
    texts = ("",) * len(rows)
    return Batch(AUDIO[rows], LENGTHS[rows], TARGETS[rows], TARGET_LENGTHS[rows], rows, ids, texts, 1.0)


def gradients(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Mean gradient over ranks, as DDP makes it, and the buffers."""
    torch.manual_seed(3)
    speech_model = model.build(CONFIG, TOKENIZER.num_tokens).double()
    task = CtcTask(speech_model, TOKENIZER, Optim(), seed=1, steps_per_epoch=1, total_steps=1)
    task.training_step(share(rank, world_size), 0).backward()
    result = {}
    for name, parameter in speech_model.named_parameters():
        assert parameter.grad is not None, name
        if world_size > 1:
            dist.all_reduce(parameter.grad)
        result[name] = parameter.grad / world_size
    return result | dict(speech_model.named_buffers())


def work(rank: int, world_size: int, folder: str) -> None:
    """One rank's process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(gradients(rank, world_size), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 6])
def test_gradients_equal_one_processs(world_size: int, tmp_path: Path) -> None:
    """With 6 ranks and 5 utterances one rank has a stand-in."""
    expected = gradients(0, 1)
    mp.spawn(work, args=(world_size, str(tmp_path)), nprocs=world_size)
    for rank in range(world_size):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert float((got[name] - value).detach().abs().max()) <= 1e-10, (rank, name)
