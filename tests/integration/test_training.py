"""Training as a user runs it: it learns, it can be stopped and killed, and what it cannot use it names."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from asr import checkpoint
from asr.config import load
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader
from asr.types import Utterance
from tests.integration.conftest import Start, assert_same, final_state, finish, other_ranks, wait_for_checkpoint
from tests.support import train_tones
from tests.support.damage import damage
from tests.support.tones import RATE_HZ, prepare, sing, texts, write_corpus

EPOCHS = 4  # 9 steps each


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EPOCHS epochs that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start([f"run_dir={run}", f"trainer.max_epochs={EPOCHS}"]))
    return run


def test_it_learns(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["test"]["wer"] <= 0.1
    assert results["test"]["utterances"] == 8


def test_a_run_folder_holds_what_is_needed_to_understand_it(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "command.txt", "checkpoints.json", "results.json", "test-test.jsonl", "metrics"} <= names
    assert "trainer.max_epochs=20" in (trained / "command.txt").read_text()
    provenance = checkpoint.load(trained).provenance
    assert provenance["metrics"]["validation/wer"] == pytest.approx(
        checkpoint.read_index(trained)["best_wer"], abs=1e-6
    )


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_and_resumed_equals_uninterrupted(
    start: Start, uninterrupted: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", f"trainer.max_epochs={EPOCHS}", f"data.num_workers={workers}"]
    process = start(overrides)
    wait_for_checkpoint(run, process)
    process.send_signal(number)
    output = finish(process, 128 + number)
    assert f"run_dir={run} resume=true" in output
    assert checkpoint.read_index(run)["last"] != checkpoint.read_index(uninterrupted)["last"]
    assert "other settings" not in finish(start([*overrides, "resume=true"]))
    assert_same(run, uninterrupted)


def test_a_signal_to_one_rank_stops_all(start: Start, tmp_path: Path) -> None:
    """As where a cluster takes one machine of several away."""
    run = tmp_path / "run"
    process = start([f"run_dir={run}", "trainer.devices=2", "trainer.max_epochs=500", "data.test=[]"])
    wait_for_checkpoint(run, process)
    (rank,) = other_ranks(process)
    os.kill(rank, signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert output.count(f"stopped by SIGTERM; to go on, add: run_dir={run} resume=true") == 2
    checkpoint.verify(run / checkpoint.read_index(run)["last"])


SLOW_VALIDATION = """
import sys, time
from asr.train.task import CtcTask
from tests.support.train_tones import main

step = CtcTask.validation_step

def slow(self, batch, batch_idx):
    print("validating after", self.global_step, flush=True)
    time.sleep(0.5)
    return step(self, batch, batch_idx)

CtcTask.validation_step = slow

if __name__ == "__main__":
    main(sys.argv[1:])
"""


def test_stopped_in_validation_and_resumed_equals_uninterrupted(
    start: Start, cache: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Nothing of the epoch is lost, though the next step is far. SIGTERM comes twice, as torchrun sends it."""
    run = tmp_path / "run"
    (tmp_path / "slow.py").write_text(SLOW_VALIDATION)
    overrides = [f"data.cache={cache}", f"run_dir={run}", f"trainer.max_epochs={EPOCHS}"]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py"), *overrides],
        cwd=train_tones.ROOT,
        env=os.environ | {"PYTHONPATH": str(train_tones.ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "validating after 9\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert "validating after 10" not in output
    assert checkpoint.read_index(run) == {
        "last": "checkpoints/step-00000009",
        "kept": ["checkpoints/step-00000009"],
        "wers": {},
    }
    finish(start([*overrides, "resume=true"]))
    assert_same(run, uninterrupted)
    assert checkpoint.read_index(run)["wers"] == checkpoint.read_index(uninterrupted)["wers"]


def test_a_damaged_checkpoint_is_passed_over(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", f"trainer.max_epochs={EPOCHS}", "trainer.checkpoint_every_steps=2"]
    process = start(overrides)
    deadline = time.monotonic() + 120
    while len(checkpoint.read_index(run).get("kept", [])) < 2:
        assert time.monotonic() < deadline, "no second checkpoint came"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    index = checkpoint.read_index(run)
    weights = run / index["last"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # cut off, as by a full disk
    before = index["kept"][-2]
    output = finish(start([*overrides, "resume=true"]))
    assert f"{weights}: damaged" in output
    assert before != index["last"]
    assert_same(run, uninterrupted)
    for kept in checkpoint.read_index(run)["kept"]:
        checkpoint.verify(run / kept)


def test_a_run_is_not_overwritten(start: Start, trained: Path) -> None:
    output = finish(start([f"run_dir={trained}"]), 2)
    assert "holds a run already; resume=true goes on with it" in output


def test_what_cannot_be_trained_on_is_named(start: Start, tmp_path: Path) -> None:
    """Too long a transcript for its audio, too short, and no transcript."""
    cache = tmp_path / "data"
    config = load(train_tones.ROOT / "recipes" / "an4", [*train_tones.SETTINGS, f"data.cache={cache}"])
    folders = prepare(config)
    sung = write_corpus(tmp_path / "wav", texts(20, 5), "good")
    bad = []
    for name, text, seconds in (("infeasible", "abc " * 30, 1.0), ("short", "a", 0.05), ("empty", "", 1.0)):
        path = tmp_path / "wav" / f"{name}.wav"
        soundfile.write(path, sing("a")[: int(seconds * RATE_HZ)], RATE_HZ)
        bad.append(Utterance(name, str(path), text, soundfile.info(path).duration))
    shards = tmp_path / "train"
    write_shards([*sung, *bad], shards, sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "prep.jsonl"))
    folders["train"].rename(tmp_path / "unused")
    shards.rename(folders["train"])
    run = tmp_path / "run"
    process = start([f"data.cache={cache}", f"run_dir={run}", "trainer.max_epochs=1", "data.batch_seconds=12"])
    output = finish(process)
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in lines}
    assert reasons == {"infeasible": "infeasible", "short": "too_short", "empty": "empty_text"}
    assert "left out 3 of 23 training utterances" in output


@pytest.mark.parametrize(
    "overrides",
    [
        # Nothing is read before the first step; a batch of one utterance that cannot be read holds nothing.
        ["features.normalization=none", "data.max_batch_items=1", "data.num_workers=2", "trainer.max_epochs=2"],
        # Both ranks read all of the training audio before the first step, and half of each batch then.
        ["trainer.devices=2", "trainer.max_epochs=1"],
    ],
    ids=["empty batches", "two ranks"],
)
def test_damage_that_comes_after_preparing_is_named_once(start: Start, tmp_path: Path, overrides: list[str]) -> None:
    cache, run = tmp_path / "data", tmp_path / "run"
    folders = prepare(load(train_tones.ROOT / "recipes" / "an4", [*train_tones.SETTINGS, f"data.cache={cache}"]))
    where = {name: damage(folder, f"{name}-003") for name, folder in folders.items()}
    output = finish(start([f"data.cache={cache}", f"run_dir={run}", *overrides]))
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert sorted((line["source"], line["id"], line["reason"]) for line in lines) == [
        ("test", "test-003", "truncated"),
        ("train", "train-003", "truncated"),
        ("validation", "validation-003", "truncated"),
    ]
    for line in lines:
        assert str(where[line["source"]]) in line["detail"]
        assert output.count(f"left out {line['id']} of {line['source']}: truncated; {run}/ledger.jsonl says why") == 1
    results = json.loads((run / "results.json").read_text())["test"]
    assert (results["utterances"], results["unreadable"]) == (7, 1)
    assert "not evaluated: test-003" in output
    rows = [json.loads(line) for line in (run / "test-test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if "error" in row] == ["test-003"]
    state = final_state(run)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_training_audio_of_which_none_can_be_read(start: Start, tmp_path: Path) -> None:
    cache, run = tmp_path / "data", tmp_path / "run"
    folders = prepare(load(train_tones.ROOT / "recipes" / "an4", [*train_tones.SETTINGS, f"data.cache={cache}"]))
    for name in ShardReader(folders["train"]).ids:
        damage(folders["train"], name)
    output = finish(start([f"data.cache={cache}", f"run_dir={run}"]), 1)
    assert f"none of 48 training utterances can be read; {run}/ledger.jsonl says why" in output
    assert len((run / "ledger.jsonl").read_text().splitlines()) == 48


def test_a_warm_start_is_reproducible_and_resuming_passes_over_it(start: Start, trained: Path, tmp_path: Path) -> None:
    """One more layer than the model that it begins with; stopped in its first epoch, when that model is gone."""
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(trained, source)
    settings = ["stack.hidden_size=32", "stack.num_layers=2", "trainer.max_epochs=2", "seed=2"]
    settings.append(f"init_from={source}")
    output = finish(start([f"run_dir={tmp_path}/whole", *settings]))
    assert f"init_from: {checkpoint.find(source)}\n  loaded " in output
    assert "head: 5 of 5 tokens, blank included, by their text" in output
    assert "not loaded: stack.layers.1: that model has none" in output
    process = start([f"run_dir={run}", *settings, "trainer.checkpoint_every_steps=2"])
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    origin = {"checkpoint": str(checkpoint.find(source)), "weights_sha256": sha256(checkpoint.find(source))}
    shutil.rmtree(source)
    assert "init_from: " not in finish(start([f"run_dir={run}", *settings, "resume=true"]))
    assert_same(run, tmp_path / "whole")
    last = run / checkpoint.read_index(run)["last"]
    assert json.loads((last / "provenance.json").read_text())["init_from"] == origin


def sha256(folder: Path) -> str:
    """Of a checkpoint's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_resuming_with_another_model_is_refused(start: Start, uninterrupted: Path) -> None:
    before = checkpoint.read_index(uninterrupted)
    for override, message in (
        ("stack.hidden_size=8", "got (5, 8) for model.head.linear.weight, expected (5, 16)"),
        ("optim=ds2_sgd", "got optim.name=sgd, expected adamw"),
        ("optim.ema_decay=0", "got optim.ema_decay=0.0, expected 0.9"),
    ):
        output = finish(start([f"run_dir={uninterrupted}", "resume=true", override]), 1)
        assert f"cannot be resumed with other settings: {message}" in output
        assert "Traceback" not in output
    assert checkpoint.read_index(uninterrupted) == before
