"""A model trained on the language of tones, once for all tests of a session."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shards of the tone language are; the first run makes them."""
    return tmp_path_factory.mktemp("tones")


Start = Callable[[Sequence[str]], "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def start(cache: Path) -> Start:
    """Start a training as a process of its own, with these overrides."""

    def start(overrides: Sequence[str]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.support.train_tones", f"data.cache={cache}", *overrides]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return start


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for a process and give its output; fails if its exit status is another."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def wait_for_checkpoint(run: Path, process: "subprocess.Popen[str]") -> str:
    """The first one that this run writes; `process` has to be alive until then."""
    deadline = time.monotonic() + 200
    while not (name := checkpoint.read_index(run).get("last", "")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    return name


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Its child processes."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def other_ranks(process: "subprocess.Popen[str]") -> list[int]:
    """The trainings that a training has started, so not its helpers."""
    return [pid for pid in children(process) if b"train_tones" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Everything that training leaves: weights in use, raw weights, the optimiser's moments, utterances' losses."""
    folder = run / checkpoint.read_index(run)["last"]
    checkpoint.verify(folder)
    state = torch.load(folder / "trainer.pt", weights_only=True)
    tensors = {f"use {name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= {f"raw {name}": tensor for name, tensor in state["state_dict"].items()}
    tensors["losses by utterance"] = state["utterance_losses"]["totals"]
    for index, moments in state["optimizer_states"][0]["state"].items():
        tensors |= {f"{index} {name}": value for name, value in moments.items() if isinstance(value, torch.Tensor)}
    return tensors


def assert_same(one: Path, other: Path) -> None:
    first, second = final_state(one), final_state(other)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="session")
def trained(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model that knows the tone language."""
    run = tmp_path_factory.mktemp("trained") / "run"
    finish(start([f"run_dir={run}", "trainer.max_epochs=20", "stack.hidden_size=32"]))
    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language of tones as a recipe of its own."""
    folder = tmp_path_factory.mktemp("recipe") / "tones"
    folder.mkdir()
    shutil.copy(ROOT / "recipes" / "an4" / "config.yaml", folder)
    (folder / "train.py").write_text(
        "from asr.train.run import main\n"
        "from tests.support.tones import prepare\n\n"
        'if __name__ == "__main__":\n    main(__file__, prepare)\n'
    )
    return folder
