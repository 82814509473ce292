"""The device that will train: is it there, does the largest batch fit, how long will it all take.

Steps are taken as training takes them, in a process of its own: what runs out of memory there leaves the report alive.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asr.config import Config, from_yaml, to_yaml
from asr.cores import num_cores
from asr.data.corpus import Corpus
from asr.data.loader import BatchDataset, reached
from asr.data.plan import BatchPlan
from asr.errors import ConfigError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer
from asr.train import parts
from asr.train.doctor.child import Child, run_children
from asr.train.doctor.report import Line, Verdict, duration, gibibytes
from asr.train.out_of_memory import first_line, is_out_of_memory, state_size
from asr.train.task import CtcTask
from asr.types import Batch

TIMED_STEPS = 5  # of batches spread over the lengths
TIMED_SECONDS = 60.0  # no further step is begun after that
TIMEOUT_SECONDS = 600.0  # for all steps: who waits longer for eight of them has an answer too
FULL_SHARE = 0.9  # of the memory: beyond, fragmentation and other processes decide
# On a CPU a run of many lengths leaves gaps in memory that is kept for the next step: on AN4 (stack=rnn, 12 epochs) the
# process grew from 1.0 GiB in these steps to 2.0 GiB in three epochs and 2.3 GiB in twelve.
CPU_GROWTH = 2.5

SMALLER = "data.batch_seconds={seconds:.0f}, a lower data.max_seconds, or a smaller model"
SMALLER_MODEL = "a smaller model (asr stack compares them), optim.name=sgd, optim.ema_decay=0"


def check_device(config: Config) -> Line:
    """See whether this machine has the devices that are configured."""
    wanted = config.trainer.devices
    if not parts.on_gpu(config):
        cores = num_cores()
        message = f"CPU, {cores} cores for {wanted} rank{'s' if wanted > 1 else ''}"
        if wanted > cores:
            return Line("device", Verdict.WARNING, f"{message}: they wait for each other", f"trainer.devices={cores}")
        return Line("device", Verdict.OK, message)
    got = torch.cuda.device_count()
    if got < wanted:
        fix = f"trainer.devices={got}" if got else "trainer.accelerator=cpu, or a driver and a torch with CUDA"
        return Line("device", Verdict.ERROR, f"{got} GPUs here, trainer.devices={wanted}", fix)
    return Line("device", Verdict.OK, f"{torch.cuda.get_device_name(0)}, {wanted} of {got}")


def check_batches(config: Config, train: Corpus, validation: Corpus, tokenizer: Tokenizer) -> Line:
    """Plan the batches, as training does: every utterance fits one, and every rank gets a share of each."""
    try:
        loader, _ = parts.make_loaders(config, train, validation, tokenizer)
    except ConfigError as error:
        return Line("batches", Verdict.ERROR, str(error), "the setting that the message names")
    padding = 100 * loader.dataset.plan.padding_share()
    return Line("batches", Verdict.OK, f"{len(loader.dataset.plan)} steps an epoch, {padding:.1f} % of them padding")


class Shape(NamedTuple):
    """What a rank works on at a time of a batch that the plan can make."""

    items: list[int]  # indices of utterances
    num_samples: int  # of its longest item


def largest_batches(plan: BatchPlan, *, shares: int = 1, slowest_speed: float = 1.0) -> list[Shape]:
    """The batch with most audio, padding included, and the one with the longest item, if that is another.

    Args:
        plan: of training. All epochs cut an order by jittered length at the same places, so that an item is longer than
            its place in the sorted order by at most (1 + jitter) / (1 - jitter).
        shares: parts of a global batch, one for each rank and piece.
        slowest_speed: speed perturbation lengthens audio by 1 / this.
    """
    batches = plan.sorted_batches(1)
    worst = (1 + plan.jitter) / (1 - plan.jitter)
    longest = np.minimum(plan.longest[-1], np.floor(plan.longest * worst).astype(np.int64))
    cost = -(-np.array([len(batch) for batch in batches]) // shares) * longest
    places = dict.fromkeys([int(np.argmax(cost)), len(batches) - 1])
    return [Shape(batches[place][::shares].tolist(), math.ceil(longest[place] / slowest_speed)) for place in places]


def check_steps(
    config: Config, train: Corpus, validation: Corpus, tokenizer: Tokenizer, model: SpeechModel, *, on_gpu: bool
) -> list[Line]:
    """Take the largest step and some others on the device that will train: lines on memory, loading and time."""
    available = _available_bytes()
    arguments = (to_yaml(config), train, validation, tokenizer, model, on_gpu)
    (child,) = run_children(take_steps, [arguments], timeout_seconds=TIMEOUT_SECONDS)
    said: dict[str, Any] = dict(child.said)
    lines = [memory_line(config, child, available)]
    if "time" in said:
        lines += [loading_line(config, said["time"]), time_line(config, said["time"], on_gpu=on_gpu)]
    return lines


def memory_line(config: Config, child: Child, available: float) -> Line:
    """The verdict on what `take_steps` came to.

    Args:
        config: of the run.
        child: the process that took the steps, and what it said.
        available: bytes that processes can take on this machine.
    """
    said: dict[str, Any] = dict(child.said)
    shapes = [value for name, value in child.said if name == "shape"] or ["the largest batch"]
    tried = [value for name, value in child.said if name in ("state", "shape")] or shapes
    half = SMALLER.format(seconds=config.data.batch_seconds / 2)
    if "out of memory" in said or (child.killed and "memory" not in said):
        why = said.get("out of memory", "the system killed the process, as it does when memory runs out")
        fix = SMALLER_MODEL if "state" in said and "shape" not in said else half
        return Line("memory", Verdict.ERROR, f"no room for {tried[-1]}: {why}", fix)
    if child.failure or "failed" in said:
        message = f"the step on {shapes[-1]} failed: {said.get('failed', child.failure)}"
        return Line("memory", Verdict.ERROR, message, f"mend what it names; or, if it was slow, {half}")
    peak, ranks, growth = said["memory"]["peak_bytes"], config.trainer.devices, CPU_GROWTH
    if "total_bytes" in said["memory"]:  # of the GPU, which a rank has for itself
        available, ranks, growth = said["memory"]["total_bytes"], 1, 1.0
    each = f" in each of {ranks} ranks" if ranks > 1 else ""
    message = f"peak {gibibytes(peak)}{each} for {' and '.join(shapes)}"
    if growth > 1:
        message += f", in a long run up to about {growth:.1f} times that"
    message += f"; {gibibytes(available)} there"
    needed = peak * ranks * growth
    figures = {"peak_bytes": float(peak), "needed_bytes": float(needed), "available_bytes": float(available)}
    if needed > FULL_SHARE * available:
        fix = SMALLER.format(seconds=config.data.batch_seconds * FULL_SHARE * available / needed)
        return Line("memory", Verdict.WARNING, message, fix, figures=figures)
    return Line("memory", Verdict.OK, message, figures=figures)


def loading_line(config: Config, figures: dict[str, float]) -> Line:
    """Whether the processes that read keep up with the device."""
    load, compute, workers = figures["load_seconds"], figures["compute_seconds"], config.data.num_workers
    message = f"reading a batch takes {load:.2g} s, a step {compute:.2g} s, {workers} workers read"
    if load > max(1, workers) * compute:
        return Line("loading", Verdict.WARNING, message, f"data.num_workers={math.ceil(load / compute)}")
    return Line("loading", Verdict.OK, message)


def time_line(config: Config, figures: dict[str, float], *, on_gpu: bool) -> Line:
    """How long training and its validations take, by the steps that were timed."""
    load, compute, workers = figures["load_seconds"], figures["compute_seconds"], config.data.num_workers
    step = max(compute, load / workers) if workers else compute + load
    steps, steps_per_epoch = int(figures["total_steps"]), int(figures["steps_per_epoch"])
    validations = math.ceil(steps / steps_per_epoch / config.trainer.validate_every_epochs)  # the last after all steps
    seconds = steps * step + validations * figures["validation_seconds"]
    devices = config.trainer.world_size
    hours = seconds * devices / 3600
    message = (
        f"about {duration(seconds)}, {hours:.2g} {'GPU' if on_gpu else 'CPU'}-hours: {steps} steps of {step:.2g} s, "
        f"{validations} validations of {duration(figures['validation_seconds'])}"
    )
    if devices > 1:
        message += "; ranks waiting for each other not counted"
    return Line("time", Verdict.OK, message, figures={"seconds": seconds, "device_hours": hours, "step_seconds": step})


def take_steps(
    say: Callable[[tuple[str, Any]], None],
    yaml: str,
    train: Corpus,
    validation: Corpus,
    tokenizer: Tokenizer,
    model: SpeechModel,
    on_gpu: bool,
) -> None:
    """Say `state`, `shape`, `memory` and `time`, or `out of memory`, or `failed`, each with its value."""
    config = from_yaml(yaml, source="doctor")
    parts.set_up_process(config)
    device = torch.device("cuda" if on_gpu else "cpu")
    loader, validation_loader = parts.make_loaders(config, train, validation, tokenizer)
    try:
        plan, pieces = loader.dataset.plan, config.trainer.pieces
        task = parts.make_task(config, model, tokenizer, steps_per_epoch=len(plan))
        say(("state", state_size(task)))
        task.to(device)
        optimizer = task.configure_optimizers()
        bf16 = parts.uses_bf16(config.trainer.precision, on_gpu)

        def step(batches: Sequence[Batch]) -> None:
            for piece, batch in enumerate(batches):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    loss = task.training_step(batch.to(device), piece)
                (loss / pieces).backward()
            task.configure_gradient_clipping(optimizer)
            optimizer.step()
            if task.average is not None:
                task.average.update(task.model, 1)
            optimizer.zero_grad()
            if on_gpu:
                torch.cuda.synchronize()

        for shape in largest_batches(
            plan, shares=config.trainer.world_size * pieces, slowest_speed=min(config.augment.speeds)
        ):
            seconds = shape.num_samples / config.data.sample_rate_hz
            say(("shape", f"{len(shape.items)} x {seconds:.1f} s of audio"))
            step([_full_batch(train, shape, tokenizer)] * min(pieces, 2))  # the second beside the first's gradients
        say(("memory", _peak_memory(on_gpu)))
        figures = {"total_steps": task.total_steps, "steps_per_epoch": len(plan)}
        say(("time", figures | _time(loader.dataset, validation_loader.dataset, task, step, device)))
        say(("memory", _peak_memory(on_gpu)))  # other lengths leave gaps between what is kept
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of them
        say(("out of memory" if is_out_of_memory(error) else "failed", first_line(error)))


def _full_batch(corpus: Corpus, shape: Shape, tokenizer: Tokenizer) -> Batch:
    """Noise as long as the longest item, for every item, with the items' own transcripts."""
    num_items = len(shape.items)
    targets = [torch.tensor(tokenizer.encode(corpus.texts[index]), dtype=torch.int64) for index in shape.items]
    return Batch(
        audio=0.1 * torch.randn(num_items, shape.num_samples),
        audio_lengths=torch.full((num_items,), shape.num_samples),
        targets=torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        target_lengths=torch.tensor([len(target) for target in targets]),
        seeds=torch.arange(num_items),
        ids=tuple(corpus.ids[index] for index in shape.items),
        texts=tuple(corpus.texts[index] for index in shape.items),
        seconds=num_items * shape.num_samples / corpus.sample_rate_hz,
        step_tokens=sum(len(target) for target in targets),
    )


def _time(
    dataset: BatchDataset,
    validation: BatchDataset,
    task: CtcTask,
    step: Callable[[Sequence[Batch]], None],
    device: torch.device,
) -> dict[str, float]:
    """Mean seconds to load a rank's share of a batch and to take its step, and seconds of a validation."""

    def load(place: int) -> list[Batch]:
        return [reached(dataset[1, place * dataset.pieces + piece]) for piece in range(dataset.pieces)]

    by_cost = np.argsort([int(dataset.plan.num_samples[batch].sum()) for batch in dataset.plan.batches(1)])
    places = np.unique(((np.arange(TIMED_STEPS) + 0.5) / TIMED_STEPS * len(by_cost)).astype(int))
    step(load(int(by_cost[places[0]])))  # compiled loops and kernels are made and chosen here
    load_seconds, compute_seconds, begin = [], [], time.perf_counter()
    for place in np.random.default_rng(0).permutation(places):
        start = time.perf_counter()
        batches = load(int(by_cost[place]))
        loaded = time.perf_counter()
        step(batches)
        load_seconds.append(loaded - start)
        compute_seconds.append(time.perf_counter() - loaded)
        if time.perf_counter() - begin > TIMED_SECONDS:
            break
    middle = validation.plan.batches(0)[len(validation) // 2]
    start = time.perf_counter()
    task.eval()
    with torch.no_grad():
        task.validation_step(reached(validation[0, len(validation) // 2]).to(device), 0)
    share = int(validation.plan.num_samples[middle].sum()) / int(validation.plan.num_samples.sum())
    return {
        "load_seconds": float(np.mean(load_seconds)),
        "compute_seconds": float(np.mean(compute_seconds)),
        "validation_seconds": (time.perf_counter() - start) / share,
    }


def _peak_memory(on_gpu: bool) -> dict[str, float]:
    if on_gpu:
        return {
            "peak_bytes": torch.cuda.max_memory_reserved(),
            "total_bytes": torch.cuda.get_device_properties(0).total_memory,
        }
    try:
        status = Path("/proc/self/status").read_text()
        return {"peak_bytes": 1024 * int(status.partition("VmHWM:")[2].split()[0])}
    except OSError:  # not Linux
        import resource

        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # macOS counts bytes


def _available_bytes() -> float:
    """Memory that processes can still take on this machine, or in this container."""
    try:
        free = 1024 * int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0])
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit: "max"
        return free
