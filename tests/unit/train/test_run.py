"""What is refused before torch is imported, and that it leaves no run folder behind."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr.config import Config
from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.errors import ConfigError, DataError
from asr.train.run import _alone_in, prepare_once, train
from tests.support.tones import RATE_HZ, write_corpus


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


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    """It will do where all is prepared. Root may write anywhere, so here something is in the lock's place."""
    config = settings(tmp_path)
    (tmp_path / "cache" / ".lock").mkdir(parents=True)
    assert prepare_once(config, lambda config: {"train": tmp_path}) == {"train": tmp_path}

    def write(config: Config) -> dict[str, Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "cache" / "an4"))

    with pytest.raises(ConfigError, match=r"data\.cache=.*cache: cannot be written to: Is a directory; choose another"):
        prepare_once(config, write)
    with pytest.raises(ConfigError, match="no data"):
        prepare_once(config, refuse)


def test_a_cache_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert prepare_once(settings(tmp_path), lambda config: {"train": tmp_path}) == {"train": tmp_path}


def tones(folder: Path, *, rate_hz: int = RATE_HZ) -> Path:
    """Shards of two utterances."""
    sung = write_corpus(folder / "wav", ["abc", "cab"], "song")
    write_shards(sung, folder / "shards", sample_rate_hz=rate_hz, ledger=Ledger(folder / "ledger.jsonl"))
    return folder / "shards"


def test_what_is_looked_at_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test splits' rates; and of folders of one name each is known by its path."""
    opened: list[Corpus] = []

    def stop(config: Config, corpus: Corpus, resume_from: object) -> None:
        opened.append(corpus)
        raise ConfigError("so far all is well")

    monkeypatch.setattr("asr.train.fit.set_up_process", lambda config: None)
    monkeypatch.setattr("asr.train.fit.make_tokenizer", stop)
    folders: dict[str, Path | str] = {name: tones(tmp_path / name) for name in ("train", "validation", "test")}
    config = settings(
        tmp_path,
        data={"train": ("train",), "validation": ("validation",), "test": ("test",)},
        trainer={"accelerator": "cpu"},
    )
    with pytest.raises(ConfigError, match="so far all is well"):
        train(config, lambda config: folders)
    assert opened[0].source(0) == str(folders["train"])
    folders["test"] = tones(tmp_path / "other", rate_hz=8000)
    with pytest.raises(DataError, match=r"got shards at 8000 Hz, data\.sample_rate_hz is 16000"):
        train(config, lambda config: folders)


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
