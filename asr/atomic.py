"""Files that appear whole or not at all, whatever is killed, unplugged or full meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from asr.errors import DataError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes `path`'s place when the block ends well.

    The bytes go to a temporary file in the same folder (made if need be), since a rename is atomic only within a file
    system; they are on disk before the rename, and the rename is on disk before this returns. If the block raises, the
    temporary file is removed and what stood at `path` is untouched.

    A link stays, and what it leads to is replaced. A device or pipe, which a rename would destroy, is written to as the
    block goes.

    Raises:
        DataError: the disk is full, read-only or otherwise refuses; names `path`.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        try:
            with path.open("wb") as handle:
                yield handle
        except OSError as error:
            if error.filename in (None, str(path)):
                raise _cannot_write(path, error) from error
            raise
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = temporary.open("wb")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
        fsync_folder(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A write names no file. An error that names another file comes from the block and is not ours to reword.
        if isinstance(error, OSError) and error.filename in (None, str(temporary), str(target.parent)):
            raise _cannot_write(path, error) from error
        raise


def fsync_folder(folder: Path) -> None:
    """Put a folder's entries on disk: renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written: {error.strerror or error}; what stood there is as before. "
        "Make room or choose a folder that can be written to, then run the same command again"
    )
