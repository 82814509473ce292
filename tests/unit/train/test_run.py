"""What is refused before torch is imported, and that it leaves no run folder behind."""

from pathlib import Path

import pytest

from asr.config import Config
from asr.errors import ConfigError
from asr.train.run import train


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


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache=.*file/data: the folder cannot be made: Not a directory"):
        train(settings(tmp_path, data={"cache": tmp_path / "file" / "data"}), refuse)
    with pytest.raises(ConfigError, match=r"run_dir=.*file/run: the folder cannot be made: Not a directory"):
        train(settings(tmp_path, run_dir=tmp_path / "file" / "run"), lambda config: {})
