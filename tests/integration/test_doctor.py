"""`asr doctor` on the tone language, sound and spoilt, and what the start of a training says of the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asr.config import load
from asr.data.shards import ShardReader
from tests.integration.conftest import ROOT, Start, finish
from tests.support import train_tones
from tests.support.tones import prepare

CHECKS = [
    "config", "shards", "audio", "rates", "characters", "rare", "utterances", "duplicates", "leaks", "disk", "device",
    "all-reduce", "batches", "memory", "loading", "time",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of the tone language."""
    folder = tmp_path_factory.mktemp("recipe") / "tones"
    folder.mkdir()
    shutil.copy(ROOT / "recipes" / "an4" / "config.yaml", folder)
    (folder / "train.py").write_text("from tests.support.tones import prepare\n")
    return folder


def doctor(recipe: Path, *overrides: str) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit status, and each line by its check."""
    command = [sys.executable, "-m", "asr", "doctor", str(recipe), *train_tones.SETTINGS, *overrides, "--json"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    lines = json.loads(done.stdout)["lines"]
    assert len({line["check"] for line in lines}) == len(lines)
    return done.returncode, {line["check"]: line for line in lines}


def test_a_sound_recipe(recipe: Path, cache: Path, tmp_path: Path) -> None:
    status, lines = doctor(recipe, f"data.cache={cache}", f"run_dir={tmp_path / 'run'}", "trainer.devices=2")
    assert list(lines) == CHECKS
    spoken = {check: line for check, line in lines.items() if line["verdict"] == "error"}
    assert (status, spoken) == (0, {})
    assert not (tmp_path / "run").exists()
    memory, time = lines["memory"]["figures"], lines["time"]["figures"]
    assert isinstance(memory, dict)
    assert isinstance(time, dict)
    assert 1e8 < memory["peak_bytes"] < memory["available_bytes"]
    assert 0 < time["step_seconds"] < time["seconds"]
    assert time["device_hours"] == pytest.approx(2 * time["seconds"] / 3600)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A cache whose test split is the training split under other ids, with a letter that training lacks."""
    cache = tmp_path / "data"
    prepare(load(ROOT / "recipes" / "an4", [*train_tones.SETTINGS, f"data.cache={cache}"]))
    shutil.rmtree(cache / "test")
    shutil.copytree(cache / "train", cache / "test")
    index = cache / "test" / "shard-000000.jsonl"
    head, first, *rest = index.read_text().splitlines()
    row = json.loads(first)
    index.write_text("\n".join([head, json.dumps(row | {"text": row["text"] + "q"}), *rest]) + "\n")
    assert len(ShardReader(cache / "test")) == 48
    return cache


def test_leaks_and_unknown_characters_are_found_and_the_rest_is_still_checked(recipe: Path, spoilt: Path) -> None:
    status, lines = doctor(recipe, f"data.cache={spoilt}", f"run_dir={spoilt / 'run'}")
    assert status == 1
    assert list(lines) == CHECKS
    assert (lines["leaks"]["verdict"], lines["leaks"]["figures"]) == ("error", {"leaks": 48})
    assert lines["characters"]["verdict"] == "warning"
    assert lines["all-reduce"]["verdict"] == "ok"


def test_the_start_of_a_training_says_what_is_wrong_and_no_more(start: Start, spoilt: Path, cache: Path) -> None:
    short = ["trainer.max_steps=1", "data.test=[test]"]
    output = finish(start([f"data.cache={spoilt}", f"run_dir={spoilt / 'run'}", *short]))
    assert "error   leaks        48 of 56 recordings of validation and test are trained on" in output
    assert "warning characters   1 characters that the training texts lack" in output
    assert "`asr doctor recipes/tones ...` looks closer" in output
    assert "ok      " not in output
    output = finish(start([f"data.cache={cache}", f"run_dir={spoilt / 'sound'}", *short]))
    assert "doctor" not in output
