"""Where a task's data file is: in `data.root`, or downloaded with a checksum."""

from __future__ import annotations

from pathlib import Path

from asr.data.download import download
from asr.errors import ConfigError
from asr.sequence.settings import Data


def find(data: Data, name: str, *, url: str, sha256: str) -> Path:
    """The path of the file `name`.

    Args:
        data: `root`, the folder that holds it or the file itself; else `download` fetches it into `cache`.
        name: of the file.
        url: where it is published.
        sha256: its checksum.

    Raises:
        ConfigError: it is not there, and nothing says that it may be downloaded.
        DataError: the download failed.
    """
    if data.root is not None:
        path = data.root if data.root.is_file() else data.root / name
        if not path.is_file():
            raise ConfigError(f"data.root={data.root}: got no {name} there, expected the folder that holds it")
        return path
    path = data.cache / name
    if not data.download and not path.is_file():
        raise ConfigError(
            f"{name} is not at hand. Three ways on: data.root=FOLDER, a folder that holds it; data.download=true, "
            f"which fetches it from {url}; or put the file at {path} yourself"
        )
    download(url, path, sha256=sha256)
    return path
