"""A disk that is full."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FREE_BYTES = 64 * 1024


@contextmanager
def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with room for FREE_BYTES: a file system of that size, or, where none can be mounted, a failing fsync."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FREE_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield folder
