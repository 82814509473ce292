"""The same global batches on 1, 2 and 4 ranks, whole or in pieces, give the same gradients and the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from asr import model
from asr.config.schema import Config, Optim, Text
from asr.data.loader import BatchDataset
from asr.text.tokenizer import build_tokenizer
from asr.train.task import CtcTask
from asr.types import Batch

STEPS = 20
NUM_ITEMS = 5  # so that with 4 ranks and 2 pieces some have nothing to do
TOKENIZER = build_tokenizer(Text(), ["abc"])


def config(*, batch_norm: bool) -> Config:
    layer = {"channels": 3, "time_kernel": 3, "frequency_kernel": 3, "frequency_stride": 2}
    stack = {"name": "gru", "num_layers": 2, "hidden_size": 8} | ({} if batch_norm else {"batch_norm": "none"})
    return Config.model_validate(
        {"features": {"num_mels": 12}, "front_end": {"layers": [layer], "batch_norm": batch_norm}, "stack": stack}
    )


class Noise:
    """A corpus of noise in float64, of which each step's global batch is NUM_ITEMS neighbours."""

    sample_rate_hz = 16000

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        count = STEPS * NUM_ITEMS
        self.ids = [str(number) for number in range(count)]
        self.texts = ["".join(random.choice(list("abc"), size=random.integers(1, 7))) for _ in range(count)]
        self.num_samples = random.integers(5000, 16000, count)
        self.num_tokens = np.array([len(text) for text in self.texts])
        self.numbers = np.arange(count)

    def audio_or_drop_many(self, indices: list[int]) -> list[np.ndarray]:
        return [0.1 * np.random.default_rng(i).standard_normal(self.num_samples[i]) for i in indices]

    repeats = False

    def __len__(self) -> int:
        return STEPS

    def batches(self, epoch: int) -> list[np.ndarray]:
        return np.split(self.numbers, STEPS)


def double(batch: Batch) -> Batch:
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def trained(
    rank: int, world_size: int, pieces: int, optim: Optim, *, batch_norm: bool
) -> list[dict[str, torch.Tensor]]:
    """The gradients of the first step, averaged over ranks as DDP does; weights and buffers after the last."""
    torch.manual_seed(3)
    noise: Any = Noise()
    dataset = BatchDataset(noise, noise, encode=TOKENIZER.encode, rank=rank, world_size=world_size, pieces=pieces)
    speech_model = model.build(config(batch_norm=batch_norm), TOKENIZER.num_tokens).double()
    task = CtcTask(speech_model, TOKENIZER, optim, seed=1, steps_per_epoch=STEPS, total_steps=STEPS, pieces=pieces)
    optimizer = task.configure_optimizers()
    first = {}
    for place in range(len(dataset)):
        batch = dataset[0, place]
        assert isinstance(batch, Batch)
        (task.training_step(double(batch), place) / pieces).backward()  # as Lightning divides
        if (place + 1) % pieces:
            continue
        for name, parameter in speech_model.named_parameters():
            assert parameter.grad is not None, name
            if world_size > 1:
                dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
            first.setdefault(name, parameter.grad.clone())
        task.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return [first, speech_model.state_dict()]


CASES = {
    f"{optim.name}, {'batch norm' if batch_norm else 'no norm'}, {pieces} pieces": (pieces, optim, batch_norm)
    for optim in (Optim(learning_rate=1e-2), Optim(name="sgd", learning_rate=1e-2, gradient_clip=1.0))
    for batch_norm in (True, False)
    for pieces in (1, 2)
}


def all_cases(rank: int, world_size: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    return {name: trained(rank, world_size, k, optim, batch_norm=norm) for name, (k, optim, norm) in CASES.items()}


def work(rank: int, world_size: int, folder: str) -> None:
    """One rank's process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(all_cases(rank, world_size), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, torch.Tensor]]]:
    """One process's."""
    return all_cases(0, 1)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    assert len(one) > 10
    return max(float((value - other[name]).detach().abs().max()) for name, value in one.items())


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_equal_one_process(
    world_size: int, expected: dict[str, list[dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    mp.spawn(work, args=(world_size, str(tmp_path)), nprocs=world_size)
    for rank in range(world_size):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, (gradients, weights) in expected.items():
            assert largest_difference(got[name][0], gradients) <= 1e-10, (rank, name)
            assert largest_difference(got[name][1], weights) <= 1e-10, (rank, name)


def test_pieces_equal_the_whole_without_batch_norm(expected: dict[str, list[dict[str, torch.Tensor]]]) -> None:
    for optim in ("adamw", "sgd"):
        for part in (0, 1):
            whole, pieces = (expected[f"{optim}, no norm, {n} pieces"][part] for n in (1, 2))
            assert largest_difference(whole, pieces) <= 1e-10, (optim, part)
    norm = [expected[f"adamw, batch norm, {n} pieces"][0] for n in (1, 2)]
    assert largest_difference(*norm) > 1e-6  # each piece has its own statistics


def test_the_steps_change_the_weights(expected: dict[str, list[dict[str, torch.Tensor]]]) -> None:
    torch.manual_seed(3)
    before = model.build(config(batch_norm=True), TOKENIZER.num_tokens).double().state_dict()
    assert largest_difference(before, expected["adamw, batch norm, 1 pieces"][1]) > 0.05
