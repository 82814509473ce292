"""What `asr decode` takes its arguments for."""

import os
from pathlib import Path

import pytest

from asr.decode.cli import find_audio
from asr.errors import DataError


def test_links_to_folders_are_followed_and_each_folder_is_searched_once(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for path in (corpus / "b" / "one.wav", elsewhere / "two.flac", corpus / "notes.txt", corpus / "c.wav" / "x.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (corpus / "a").symlink_to(corpus / "b")  # by its own name, though that of the link comes first
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(corpus)
    (corpus / "file.wav").symlink_to(corpus / "b" / "one.wav")
    assert find_audio([str(corpus)]) == [corpus / name for name in ("b/one.wav", "file.wav", "linked/two.flac")]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.wav").touch()

    def scandir(path: str) -> "os._ScandirIterator[str]":
        if path.endswith("closed"):  # by the administrator, whom tests may run as, every folder can be read
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="closed: Permission denied; expected a folder that can be searched"):
        find_audio([str(tmp_path)])


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(DataError, match="xxx: no such file, folder, or match"):
        find_audio(["x" * 300])
