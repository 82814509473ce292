"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from asr.atomic import atomic_write
from asr.errors import DataError
from tests.support.full_disk import FREE_BYTES, full_disk


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"other"):
        with atomic_write(path) as handle:
            handle.write(content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_old_file_stands_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "gone", "other")])
def test_an_error_in_the_block_passes_and_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as handle:  # noqa: PT012 - the block is tested
        handle.write(b"new")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(tmp_path / "disk", monkeypatch) as folder:
        path = folder / "file"
        with atomic_write(path) as handle:
            handle.write(b"old")
        full = r"disk/file: cannot be written: No space left on device.*Make room"
        with pytest.raises(DataError, match=full), atomic_write(path) as handle:
            handle.write(bytes(2 * FREE_BYTES))
        assert path.read_bytes() == b"old"
        assert os.listdir(folder) == ["file"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/inside: cannot be written"), atomic_write(tmp_path / "file" / "inside"):
        pass


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    for name in ("there", "not there"):
        target, link = tmp_path / "other" / name, tmp_path / name
        link.symlink_to(target)
        if name == "there":
            target.parent.mkdir()
            target.write_bytes(b"old")
        with atomic_write(link) as handle:
            handle.write(b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path / "other")) == ["not there", "there"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic_write(pipe) as handle:
            handle.write(b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_full_device(tmp_path: Path) -> None:
    link = tmp_path / "full"  # a mistake here would cost the machine its device
    link.symlink_to("/dev/full")
    with pytest.raises(DataError, match="full: cannot be written: No space left"), atomic_write(link) as handle:
        handle.write(b"new")
    assert link.is_char_device()
