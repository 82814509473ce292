"""The largest batch, memory, loading and time: each verdict, and the bound against every batch of many epochs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import model
from asr.data.plan import BatchPlan
from asr.text.tokenizer import build_tokenizer
from asr.train.doctor import device
from asr.train.doctor.child import Child
from asr.train.doctor.device import check_batches, check_device, largest_batches, loading_line, memory_line, time_line
from asr.train.doctor.report import Line, Verdict
from tests.support.doctor import FakeCorpus, tiny_config

GIB = 2**30


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    jitter=st.sampled_from([0.0, 0.1, 0.3]),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_no_batch_of_any_epoch_is_larger(lengths: list[int], jitter: float, world_size: int, seed: int) -> None:
    plan = BatchPlan(np.array(lengths), seed=seed, batch_samples=1000, max_items=6, jitter=jitter, sorta_grad=True)
    shapes = largest_batches(plan, shares=world_size)
    samples = max(len(shape.items) * shape.num_samples for shape in shapes)
    longest = max(shape.num_samples for shape in shapes)
    met = [
        (len(share), int(plan.num_samples[share].max()))
        for epoch in range(12)
        for batch in plan.batches(epoch)
        for rank in range(world_size)
        if len(share := batch[rank::world_size])
    ]
    assert samples >= max(items * length for items, length in met)
    assert longest == max(lengths)
    assert samples <= max(1000, max(lengths))  # what data.batch_seconds promises
    if not jitter:
        assert samples == max(items * length for items, length in met)


def test_slow_speech_is_longer() -> None:
    plan = BatchPlan(np.array([100, 90, 80]), seed=1, batch_samples=300, max_items=8)
    (shape,) = largest_batches(plan, slowest_speed=0.9)
    assert (len(shape.items), shape.num_samples) == (3, math.ceil(100 / 0.9))
    assert largest_batches(plan, shares=2)[0].items == [2, 0]


def test_the_longest_item_is_tried_too() -> None:
    plan = BatchPlan(np.array([400, 100, 100, 100, 100, 100]), seed=1, batch_samples=500, max_items=8)
    assert [(len(shape.items), shape.num_samples) for shape in largest_batches(plan)] == [(5, 100), (1, 400)]


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1})
    assert check_device(tiny_config(trainer={"accelerator": "cpu", "devices": 2})).verdict is Verdict.OK
    line = check_device(tiny_config(trainer={"accelerator": "cpu", "devices": 3}))
    assert (line.verdict, line.fix) == (Verdict.WARNING, "trainer.devices=2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = check_device(tiny_config(trainer={"accelerator": "gpu"}))
    assert (line.verdict, "trainer.accelerator=cpu" in line.fix) == (Verdict.ERROR, True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    line = check_device(tiny_config(trainer={"accelerator": "gpu", "devices": 4}))
    assert (line.verdict, line.fix) == (Verdict.ERROR, "trainer.devices=2")
    assert check_device(tiny_config(trainer={"accelerator": "gpu", "devices": 2})).message == "a GPU, 2 of 2"


@pytest.mark.parametrize(
    ("lengths", "devices", "message"),
    [
        ([16000] * 8, 2, ""),
        ([16000] * 99, 25, "data.batch_seconds=6.0: most global batches hold 5 utterances at the most, 25 ranks"),
        ([16000, 16000 * 7], 1, "the longest utterance has 112000 samples"),
        ([16000] * 2, 3, "most global batches hold 2 utterances at the most, 3 ranks share each; raise"),
        ([16000] * 4 + [16000 * 5], 2, ""),  # the longest has a batch of its own, where one rank has nothing to do
        ([], 1, "no utterance is left"),
    ],
)
def test_batches(lengths: list[int], devices: int, message: str) -> None:
    config = tiny_config(trainer={"devices": devices})
    corpus, tokenizer = FakeCorpus(lengths), build_tokenizer(config.text, ["abc"])
    line = check_batches(config, corpus, FakeCorpus([16000]), tokenizer)
    assert line.verdict is (Verdict.ERROR if message else Verdict.OK)
    assert (message or "2 steps an epoch, 0.0 % of them padding") in line.message


def test_the_limit_that_makes_batches_too_small_is_named() -> None:
    config = tiny_config(data={"max_batch_items": 1}, trainer={"devices": 2, "pieces": 2})
    corpus, tokenizer = FakeCorpus([16000] * 8), build_tokenizer(config.text, ["abc"])
    line = check_batches(config, corpus, FakeCorpus([16000]), tokenizer)
    assert line.message == (
        "data.max_batch_items=1: most global batches hold 1 utterances at the most, 2 ranks share each, each in 2 "
        "pieces; raise data.max_batch_items to 4 at least"
    )


def memory(child: Child, *, available: float = 9 * GIB, **trainer: Any) -> Line:
    return memory_line(tiny_config(data={"batch_seconds": 100.0}, trainer=trainer), child, available)


def test_memory_that_is_enough_or_scarce() -> None:
    said = [("shape", "3 x 2.0 s"), ("shape", "1 x 9.0 s"), ("memory", {"peak_bytes": 3 * GIB})]
    line = memory(Child(said))
    assert (line.verdict, line.message) == (
        Verdict.OK,
        "peak 3.00 GiB for 3 x 2.0 s and 1 x 9.0 s, in a long run up to about 2.5 times that; 9.00 GiB there",
    )
    line = memory(Child(said), devices=4)  # ranks share a machine's memory
    assert (line.verdict, line.fix.split(",")[0]) == (Verdict.WARNING, "data.batch_seconds=27")
    assert "in each of 4 ranks" in line.message
    said[-1] = ("memory", {"peak_bytes": 3 * GIB, "total_bytes": 80 * GIB})  # and have a GPU each
    assert memory(Child(said), available=1.0, devices=4).verdict is Verdict.OK
    said[-1] = ("memory", {"peak_bytes": 75 * GIB, "total_bytes": 80 * GIB})
    line = memory(Child(said))
    assert (line.verdict, line.fix.split(",")[0]) == (Verdict.WARNING, "data.batch_seconds=96")


@pytest.mark.parametrize(
    ("child", "message"),
    [
        (Child([("shape", "a"), ("shape", "b"), ("out of memory", "tried 4 GiB")]), "no room for b: tried 4 GiB"),
        (Child([("shape", "a")], "killed by SIGKILL", killed=True), "no room for a: the system killed the process"),
        (Child([("shape", "a")], "no end within 600 s", timed_out=True), "step on a failed: no end within 600 s"),
        (Child([("shape", "a"), ("failed", "cuDNN error")]), "step on a failed: cuDNN error"),
        (Child([], "exit status 1"), "the largest batch failed: exit status 1"),
    ],
)
def test_a_step_that_cannot_be_taken_is_an_error(child: Child, message: str) -> None:
    line = memory(child)
    assert line.verdict is Verdict.ERROR
    assert message in line.message
    assert "data.batch_seconds=50" in line.fix


def test_a_model_that_leaves_no_room_for_any_batch() -> None:
    line = memory(Child([("state", "900 M parameters"), ("out of memory", "tried 4 GiB")]))
    assert (line.verdict, line.message) == (Verdict.ERROR, "no room for 900 M parameters: tried 4 GiB")
    assert line.fix.startswith("a smaller model")


def test_what_is_too_large_is_said_to_be() -> None:
    """An utterance of a year: no machine has room for it, and torch says so."""
    config = tiny_config(data={"batch_seconds": 1e9, "max_seconds": 1e9})
    corpus = FakeCorpus([3600 * 24 * 365 * 16000])
    tokenizer = build_tokenizer(config.text, ["abc"])
    said: list[tuple[str, Any]] = []
    speech_model = model.build(config, tokenizer.num_tokens)
    device.take_steps(said.append, device.to_yaml(config), corpus, corpus, tokenizer, speech_model, on_gpu=False)
    assert [name for name, _ in said] == ["state", "shape", "out of memory"]
    assert memory_line(config, Child(said), 8 * GIB).verdict is Verdict.ERROR


def times(**values: float) -> dict[str, float]:
    figures = {"load_seconds": 0.2, "compute_seconds": 0.5, "validation_seconds": 30.0}
    return figures | {"total_steps": 1000, "steps_per_epoch": 100} | values


@pytest.mark.parametrize(
    ("load", "workers", "verdict", "fix"),
    [
        (0.4, 0, Verdict.OK, ""),
        (0.6, 0, Verdict.WARNING, "data.num_workers=2"),
        (0.9, 2, Verdict.OK, ""),
        (1.6, 2, Verdict.WARNING, "data.num_workers=4"),
    ],
)
def test_loading(load: float, workers: int, verdict: Verdict, fix: str) -> None:
    line = loading_line(tiny_config(data={"num_workers": workers}), times(load_seconds=load))
    assert (line.verdict, line.fix) == (verdict, fix)


@pytest.mark.parametrize(("workers", "load", "step"), [(1, 0.2, 0.5), (0, 0.2, 0.7), (1, 0.8, 0.8), (2, 1.6, 0.8)])
def test_time(workers: int, load: float, step: float) -> None:
    """Workers load while the device computes: the slower of the two counts. 10 epochs with 10 validations of 30 s."""
    config = tiny_config(data={"num_workers": workers}, trainer={"devices": 2, "num_nodes": 2})
    line = time_line(config, times(load_seconds=load), on_gpu=True)
    assert line.figures["step_seconds"] == pytest.approx(step)
    assert line.figures["seconds"] == pytest.approx(1000 * step + 300)
    assert line.figures["device_hours"] == pytest.approx(4 * (1000 * step + 300) / 3600)
    assert "GPU-hours" in line.message
    assert "waiting for each other not counted" in line.message


def test_validations_are_counted() -> None:
    config = tiny_config(trainer={"validate_every_epochs": 3})
    line = time_line(config, times(total_steps=950), on_gpu=False)  # epochs 3, 6 and 9, and the end
    assert line.figures["seconds"] == pytest.approx(950 * 0.7 + 120)
    assert "CPU-hours" in line.message
