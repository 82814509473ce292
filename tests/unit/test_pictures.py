"""Pictures are written whole, into folders that need not be there, or it is said why not."""

import os
from pathlib import Path

import pytest

from asr.errors import ConfigError, DataError
from asr.pictures import new_figure, save_figure


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a", b"\x89PNG")])
def test_a_folder_is_made_and_the_name_says_the_format(tmp_path: Path, name: str, magic: bytes) -> None:
    save_figure(new_figure(figsize=(1, 1)), tmp_path / "new" / name, dpi=20)
    assert (tmp_path / "new" / name).read_bytes().startswith(magic)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    figure = new_figure(figsize=(1, 1))
    with pytest.raises(ConfigError, match=r"a\.xyz: got a picture of the kind 'xyz', expected one of .*png"):
        save_figure(figure, tmp_path / "a.xyz", dpi=20)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"a\.png: cannot be written: "):
        save_figure(figure, tmp_path / "file" / "a.png", dpi=20)
    assert os.listdir(tmp_path) == ["file"]
