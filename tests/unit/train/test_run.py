"""What is refused before torch is imported, and that it leaves no run folder behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr.config import Config
from asr.errors import ConfigError
from asr.train.run import _alone_in, train


def settings(tmp_path: Path, data: dict[str, object] | None = None, **values: object) -> Config:
    sections = {"run_dir": tmp_path / "run", "data": {"cache": tmp_path / "cache"} | (data or {})}
    return Config.model_validate(sections | values)


def refuse(config: Config) -> dict[str, Path]:
    raise ConfigError("no data")


@pytest.mark.parametrize("key", ["train", "validation"])
def test_splits_are_needed(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}=\[\]: expected at least one split"):
        train(settings(tmp_path, data={key: ()}), refuse)


def test_without_data_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data"):
        train(settings(tmp_path), refuse)
    assert not (tmp_path / "run").exists()


def test_resuming_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume=true needs run_dir=FOLDER"):
        train(settings(tmp_path, run_dir=None, resume=True), refuse)


def test_gpus_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"0 GPUs here, trainer.devices=1; to mend it: trainer.accelerator=cpu, or a"):
        train(settings(tmp_path, trainer={"accelerator": "gpu"}), lambda config: {})


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache=.*file/data: the folder cannot be made: Not a directory"):
        train(settings(tmp_path, data={"cache": tmp_path / "file" / "data"}), refuse)
    with pytest.raises(ConfigError, match=r"run_dir=.*file/run: the folder cannot be made: Not a directory"):
        train(settings(tmp_path, run_dir=tmp_path / "file" / "run"), lambda config: {})


def test_a_folder_that_is_no_runs_keeps_its_configuration(tmp_path: Path) -> None:
    """Such as a recipe's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("recipe: mine\n")
    with pytest.raises(ConfigError, match=r"run: has a config\.yaml and is no run's folder; choose another one"):
        train(settings(tmp_path), refuse)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    for name in ("command.txt", "checkpoints.json"):  # a run that goes on
        (run / name).touch()
        with pytest.raises(ConfigError, match="no data"):
            train(settings(tmp_path, resume=True), refuse)
        (run / name).unlink()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Also with resume=true, and before there is a checkpoint; a run that was killed stands in nobody's way."""
    run = tmp_path / "run"
    run.mkdir()
    holder = """
import fcntl, os, sys, time
from asr.train.run import _alone_in
from asr.config import Config
from pathlib import Path
with _alone_in(Config(), Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", holder, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        for resume in (False, True):
            with pytest.raises(ConfigError, match=rf"run: process {first.pid} on .* trains in it; wait for its end"):
                train(settings(tmp_path, resume=resume), lambda config: {})
        assert {path.name for path in run.iterdir()} == {".lock"}  # it was refused before it wrote anything
        with _alone_in(settings(tmp_path, trainer={"devices": 2}), tmp_path / "another"):
            pass
        first.kill()
    with _alone_in(settings(tmp_path), run):
        assert (run / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_other_ranks_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path, trainer={"devices": 2})
    with _alone_in(config, tmp_path / "run"):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with _alone_in(config, tmp_path / "run"):
            pass
