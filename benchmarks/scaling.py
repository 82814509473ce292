"""What a training step costs on several ranks, and a model of its communication on many.

    python benchmarks/scaling.py step      [--repeats 15] [--seconds 160] [--precision bf16] [model=PRESET ...]
    python benchmarks/scaling.py allreduce [--repeats 15]
    python benchmarks/scaling.py model     [--bandwidth-gb 1.25 12.5 50] [--latency-us 20]

step: one step of training (forward, CTC, backward, DDP's sums over gloo, clipping, optimiser; one thread a rank) on 1,
2 and 4 ranks of this machine, with the same work for each rank, and with the same work in all. `pair` is two single
ranks at once that do not talk: what it takes longer than one is the machine's doing, what two ranks take longer than
it is the communication's. Groups of processes take turns, so that a drifting machine hits all alike.

allreduce: sums of 4 kB to 64 MB over 2 and 4 ranks, and what the model below gives when its two numbers are fitted,
for each number of ranks by itself: ranks that share cores and memory have links that slow each other down.

model: seconds a step of ring all-reduce for 5 to 100 M parameters on 8 to 64 GPUs, for links as stated on the command
line. Those are inputs, not measurements:

    seconds = 2 (n - 1) latency + 2 (n - 1) / n * bytes / bandwidth

A ring of n ranks has n - 1 steps of reduce-scatter and n - 1 of all-gather, each moving bytes / n over every link.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import emit, spread
from torch.nn.parallel import DistributedDataParallel

from asr import model
from asr.config import load
from asr.config.schema import Text
from asr.text.tokenizer import build_tokenizer
from asr.train.memory import keep_freed_memory
from asr.train.task import CtcTask
from asr.types import Batch

ITEM_SECONDS = 4.0
RATE_HZ = 16000
TOKENS_PER_SECOND = 4  # subword tokens; as many as the frames of the presets with a stride of 4 have room for
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
WORLDS = (1, 2, 4)
BYTES = tuple(1 << power for power in range(12, 27, 2))  # 4 kB to 64 MB
BYTES_OF_GRADIENT = 4  # float32
PARAMETERS = (5e6, 20e6, 50e6, 100e6)
GPUS = (8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "allreduce", "model"))
    parser.add_argument("overrides", nargs="*", default=[], help="of the configuration (model=small_streaming, 5 M)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=160.0, help="audio of a rank's batch (160)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of a step's arithmetic")
    parser.add_argument("--bandwidth-gb", type=float, nargs="+", default=[1.25, 12.5, 50.0], help="GB/s of a link")
    parser.add_argument("--latency-us", type=float, default=20.0, help="microseconds of a step of the ring")
    options = parser.parse_intermixed_args()
    if options.seconds < (least := ITEM_SECONDS * max(WORLDS)):
        parser.error(f"--seconds: got {options.seconds:g}, expected {least:g} or more: each of 4 ranks needs an item")
    if options.what == "step":
        measure_steps(options.overrides, options.repeats, options.seconds, options.precision)
    elif options.what == "allreduce":
        measure_all_reduce(options.repeats)
    else:
        print_model(options.bandwidth_gb, options.latency_us * 1e-6)


def ring_seconds(num_bytes: float, ranks: int, latency_seconds: float, bytes_per_second: float) -> float:
    """The model: a ring all-reduce of `num_bytes` over `ranks`."""
    return 2 * (ranks - 1) * latency_seconds + 2 * (ranks - 1) / ranks * num_bytes / bytes_per_second


# --- processes that wait for work -----------------------------------------------------------------------------------


class Group:
    """Processes of one process group that do what they are told, all at once.

    Args:
        ranks: how many.
        make: called with (rank, ranks) in each process; what it gives is called for each repetition.
    """

    def __init__(self, ranks: int, make: Callable[[int, int], Callable[[str], Any]]) -> None:
        context = mp.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.pipes: list[Any] = []
        for rank in range(ranks):
            here, there = context.Pipe()
            meeting = f"file://{self.folder.name}/meeting"
            context.Process(target=_serve, args=(rank, ranks, meeting, make, there), daemon=True).start()
            self.pipes.append(here)

    def begin(self, word: str) -> None:
        """Start a repetition."""
        for pipe in self.pipes:
            pipe.send(word)

    def end(self) -> list[Any]:
        """Wait for it; gives what each rank says."""
        return [pipe.recv() for pipe in self.pipes]

    def call(self, word: str) -> list[Any]:
        """Both."""
        self.begin(word)
        return self.end()


def _serve(rank: int, ranks: int, meeting: str, make: Callable[[int, int], Callable[[str], Any]], pipe: Any) -> None:
    torch.set_num_threads(1)
    for message in (
        "`broadcast_buffers` is deprecated",
        "Grad strides do not match bucket view strides",
    ):  # as training
        warnings.filterwarnings("ignore", f".*{message}")
    keep_freed_memory()  # as in training
    if ranks > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    function = make(rank, ranks)
    with contextlib.suppress(EOFError):  # the other end is closed: done
        while True:
            pipe.send(function(pipe.recv()))


# --- a training step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank says of a step: seconds by the clock and of work, and collectives beside the gradients'."""

    seconds: float
    cpu_seconds: float
    collectives: int
    parameters: int


class _Loss(torch.nn.Module):
    """What DDP wraps: batch in, loss out, as Lightning has it."""

    def __init__(self, task: CtcTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.task.training_step(batch, 0)


def make_step(overrides: Sequence[str], seconds: float, precision: str, rank: int, ranks: int) -> Callable[[str], Step]:
    """A rank's training step; called with "each" (the same work for a rank) or "all" (the same work for all)."""
    config = load(Path(__file__).parents[1] / "recipes" / "librispeech", ["data=embedded", *overrides])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Text(tokenizer="characters"), [ALPHABET])
    task = CtcTask(
        model.build(config, tokenizer.num_tokens), tokenizer, config.optim, seed=1, steps_per_epoch=1, total_steps=1
    )
    optimizer = task.configure_optimizers()
    loss_of: torch.nn.Module = _Loss(task)
    if ranks > 1:
        loss_of = DistributedDataParallel(loss_of, broadcast_buffers=False, gradient_as_bucket_view=True)
    items = int(seconds / ITEM_SECONDS)
    batches = {"each": made_up_batch(items, rank), "all": made_up_batch(items // ranks, rank)}
    parameters = sum(parameter.numel() for parameter in task.parameters())
    calls = _count_collectives()

    def step(word: str) -> Step:
        calls.clear()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(batches[word])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
        if task.average is not None:
            task.average.update(task.model, 0)
        if ranks > 1:
            # Has a signal come? Asked after each step, as asr/train/checkpoints.py does.
            dist.all_reduce(torch.zeros(2, dtype=torch.int64), dist.ReduceOp.MAX)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
        return Step(seconds, cpu_seconds, len(calls), parameters)

    return step


def _count_collectives() -> list[int]:
    """A list that grows by one with each all-reduce that Python asks for; DDP's own are not among them."""
    calls: list[int] = []
    all_reduce = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    return calls


def made_up_batch(items: int, rank: int) -> Batch:
    """Noise of 80 to 100 % of ITEM_SECONDS, with random tokens."""
    generator = torch.Generator().manual_seed(rank)
    samples, tokens = int(ITEM_SECONDS * RATE_HZ), int(ITEM_SECONDS * TOKENS_PER_SECOND)
    lengths = (samples * torch.linspace(1.0, 0.8, items)).long()
    return Batch(
        audio=0.1 * torch.randn(items, samples, generator=generator),
        audio_lengths=lengths,
        targets=torch.randint(1, len(ALPHABET), (items, tokens), generator=generator),
        target_lengths=torch.full((items,), tokens),
        seeds=torch.arange(items),
        ids=("",) * items,
        texts=("",) * items,
        seconds=float(lengths.sum()) / RATE_HZ,
        step_tokens=items * tokens * (dist.get_world_size() if dist.is_initialized() else 1),
    )


def measure_steps(overrides: list[str], repeats: int, seconds: float, precision: str) -> None:
    """Time steps of 1, 2 and 4 ranks and of a pair that does not talk, in turn, and print what each costs."""
    if not any(word.startswith("model=") for word in overrides):
        overrides = ["model=small_streaming", *overrides]
    make = partial(make_step, overrides, seconds, precision)
    groups = {str(ranks): [Group(ranks, make)] for ranks in WORLDS}
    groups["pair"] = [Group(1, make), Group(1, make)]
    turns = [(name, word) for word in ("each", "all") for name in groups if (name, word) != ("pair", "all")]
    steps: dict[tuple[str, str], list[list[Step]]] = {turn: [] for turn in turns}
    for repetition in range(-2, repeats):
        for name, word in turns:
            for group in groups[name]:
                group.begin(word)
            said = [step for group in groups[name] for step in group.end()]
            if repetition >= 0:
                steps[name, word].append(said)
    wall = {turn: [max(step.seconds for step in said) for said in all_said] for turn, all_said in steps.items()}
    work = {
        turn: [statistics.mean(step.cpu_seconds for step in said) for said in all_said]
        for turn, all_said in steps.items()
    }
    for (name, word), seconds_each in wall.items():
        first = steps[name, word][0][0]
        emit(
            benchmark="scaling step",
            ranks=name,
            same_work_for=word,
            parameters=first.parameters,
            precision=precision,
            audio_seconds_of_a_rank=seconds / (int(name) if word == "all" else 1),
            small_collectives=first.collectives,
            seconds=spread(seconds_each),
            cpu_seconds_of_a_rank=statistics.median(work[name, word]),
            times_one_rank=_ratio(seconds_each, wall["1", word]),
        )
    emit(
        benchmark="scaling overhead of 2 ranks",
        precision=precision,
        over_one_rank=_ratio(wall["2", "each"], wall["1", "each"]) - 1,
        over_a_pair_that_does_not_talk=_ratio(wall["2", "each"], wall["pair", "each"]) - 1,
        cpu_over_one_rank=_ratio(work["2", "each"], work["1", "each"]) - 1,
        cpu_over_a_pair_that_does_not_talk=_ratio(work["2", "each"], work["pair", "each"]) - 1,
        audio_seconds_of_a_rank=seconds,
        load_average=os.getloadavg()[0],
    )


def _ratio(above: list[float], below: list[float]) -> float:
    """Ratio of medians."""
    return statistics.median(above) / statistics.median(below)


# --- the sum alone ---------------------------------------------------------------------------------------------------


def make_all_reduce(rank: int, ranks: int) -> Callable[[str], float]:
    """Seconds of one sum of so many bytes."""

    def run(num_bytes: str) -> float:
        values = torch.ones(int(num_bytes) // 4)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        return time.perf_counter() - begin

    return run


def measure_all_reduce(repeats: int) -> None:
    """Time sums, fit the model's two numbers, and print both sides by side."""
    groups = {ranks: Group(ranks, make_all_reduce) for ranks in WORLDS if ranks > 1}
    seconds: dict[tuple[int, int], list[float]] = {(ranks, size): [] for ranks in groups for size in BYTES}
    for repetition in range(-2, repeats):
        for ranks, size in seconds:
            longest = max(groups[ranks].call(str(size)))
            if repetition >= 0:
                seconds[ranks, size].append(longest)
    for ranks in groups:
        medians = np.array([statistics.median(seconds[ranks, size]) for size in BYTES])
        latency, bandwidth = fit(ranks, medians)
        for size, median in zip(BYTES, medians, strict=True):
            modelled = ring_seconds(size, ranks, latency, bandwidth)
            emit(
                benchmark="scaling allreduce",
                ranks=ranks,
                megabytes=size / 1e6,
                milliseconds={name: 1000 * value for name, value in spread(seconds[ranks, size]).items()},
                modelled_milliseconds=1000 * modelled,
                modelled_over_measured=modelled / median,
            )
        emit(
            benchmark="scaling allreduce fit",
            ranks=ranks,
            latency_us=latency * 1e6,
            gigabytes_per_second=bandwidth * 1e-9,
            load_average=os.getloadavg()[0],
        )


def fit(ranks: int, seconds: np.ndarray) -> tuple[float, float]:
    """The model's latency in seconds and bandwidth in bytes a second, for sums of BYTES that took `seconds`."""
    rows = np.array([[ring_seconds(0, ranks, 1.0, 1.0), ring_seconds(size, ranks, 0.0, 1.0)] for size in BYTES])
    # By relative errors, or the largest sums alone would decide.
    latency, seconds_per_byte = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(BYTES)), rcond=None)[0]
    return float(latency), float(1 / seconds_per_byte)


# --- beyond this machine ---------------------------------------------------------------------------------------------


def print_model(gigabytes_per_second: Sequence[float], latency_seconds: float) -> None:
    """Print modelled milliseconds of a step's gradient sum; every link as fast as the slowest."""
    print(
        f"modelled, not measured: milliseconds to sum float32 gradients in a ring; {latency_seconds * 1e6:g} us a hop"
    )
    header = "".join(f"{gpus:>5} GPUs" for gpus in GPUS)
    for bandwidth in gigabytes_per_second:
        print(f"\n{bandwidth:g} GB/s a link{'':6}{header}")
        for parameters in PARAMETERS:
            cells = (
                1000 * ring_seconds(parameters * BYTES_OF_GRADIENT, gpus, latency_seconds, bandwidth * 1e9)
                for gpus in GPUS
            )
            print(f"{parameters / 1e6:>6.0f} M parameters  " + "".join(f"{cell:>10.1f}" for cell in cells))


if __name__ == "__main__":
    main()
