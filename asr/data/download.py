"""Fetch an archive over HTTP: resumed where it broke off, checked before it counts, unpacked without harm."""

from __future__ import annotations

import hashlib
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from asr.atomic import atomic_write, fsync_folder
from asr.data.progress import progress_bar
from asr.errors import DataError

ATTEMPTS = 5  # at one address, while the connection breaks off but something has come
BACK_OFF_SECONDS = 1.0  # before the second attempt; doubled for each further one
TIMEOUT_SECONDS = 60.0  # without a byte
CHUNK_BYTES = 1 << 18
RETRIABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}


def download(
    url: str, path: Path, *, sha256: str | None = None, md5: str | None = None, mirrors: Sequence[str] = ()
) -> None:
    """Fetch `url` to `path`. A file that is there already, maybe put there by hand, is only checked.

    What has come is kept in `path` + ".part"; a connection that breaks off is taken up again there, by this call or a
    later one. `mirrors` are tried in turn where `url` fails.

    Args:
        url: HTTP or HTTPS address; proxies come from the environment (https_proxy).
        path: of the file.
        sha256: checksum that the file has to have, in hexadecimal; None: not checked.
        md5: another one, likewise.
        mirrors: other addresses of the same file.

    Raises:
        DataError: no address gave the file, its checksum is wrong (it is removed), or it cannot be written.
    """
    if path.exists():
        wrong = _wrong_sum(path, sha256, md5)
        if wrong:
            raise DataError(f"{path}: {wrong}; remove the file to fetch it anew")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: its folder cannot be made: {error.strerror}; choose another one") from error
    part = path.with_name(f"{path.name}.part")
    failures = []
    for address in (url, *mirrors):
        try:
            _fetch(address, part)
        except (OSError, HTTPException) as error:
            failures.append(f"{address}: {_words(error)}")
            continue
        wrong = _wrong_sum(part, sha256, md5)
        if not wrong:
            part.replace(path)
            fsync_folder(path.parent)
            return
        part.unlink()
        failures.append(f"{address}: {wrong}; the file was removed")
    tried = "\n  ".join(failures)
    raise DataError(
        f"{path.name} could not be downloaded:\n  {tried}\nCheck the network (a proxy goes into https_proxy) and run "
        f"again, which resumes; or fetch the file by other means and put it at {path}"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into `folder`, once: a marker file there says that it is done.

    Members that would land outside of the folder, devices and the like are refused (PEP 706, filter "data").

    Raises:
        DataError: the archive is damaged or unsafe, or the disk is full.
    """
    if is_unpacked(archive, folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            archive.open("rb") as handle,
            progress_bar(f"unpacking {archive.name}", archive.stat().st_size, in_bytes=True) as progress,
            tarfile.open(fileobj=handle) as tar,
        ):
            position = 0
            for member in tar:
                tar.extract(member, folder, filter="data")
                progress(handle.tell() - position)
                position = handle.tell()
            # tarfile stops at the end mark, before gzip comes to its own checksum, and takes some cuts for the end.
            while tar.fileobj is not None and tar.fileobj.read(CHUNK_BYTES):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked into {folder}: {_words(error)}. Make room if the disk is full and run "
            "again; or remove the archive to fetch it anew"
        ) from error
    with atomic_write(_marker(archive, folder)):
        pass


def is_unpacked(archive: Path, folder: Path) -> bool:
    """Whether `unpack` has come to its end; the archive itself may be gone."""
    return _marker(archive, folder).exists()


def _marker(archive: Path, folder: Path) -> Path:
    return folder / f".{archive.name}.unpacked"


def _fetch(address: str, part: Path) -> None:
    """Complete `part` from one address.

    Raises:
        OSError, HTTPException: it did not work.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(part)
        try:
            _fetch_rest(address, part)
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                again = error.code in RETRIABLE_STATUS
            else:
                again = _size(part) != before or attempt > 1  # an address that gave nothing so far is given up at once
            if not again or attempt == ATTEMPTS:
                raise
        time.sleep(BACK_OFF_SECONDS * 2 ** (attempt - 1))


def _fetch_rest(address: str, part: Path) -> None:
    """One request for what `part` lacks."""
    start = _size(part)
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # 416: nothing lies beyond `start`. The part is whole, or of another file.
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return
        part.unlink()
        raise ConnectionError(f"the server's file is shorter than {part.name}; begun anew") from error
    with response:
        if response.status != 206:  # the server gives the whole file, whatever was asked for
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with progress_bar(part.name.removesuffix(".part"), total, in_bytes=True) as progress:
            progress(start)
            received = start
            with part.open("ab" if start else "wb") as handle:
                for chunk in _chunks(response):
                    try:
                        handle.write(chunk)
                    except OSError as error:
                        raise DataError(f"{part}: cannot be written: {error.strerror}; make room, run again") from error
                    received += len(chunk)
                    progress(len(chunk))
    if total is not None and received != total:
        raise ConnectionError(f"the connection broke off after {received} of {total} bytes")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read(CHUNK_BYTES):
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wrong_sum(path: Path, sha256: str | None, md5: str | None) -> str:
    """What is wrong with a file's checksum; empty if nothing."""
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with path.open("rb") as handle:
                got = hashlib.file_digest(handle, algorithm).hexdigest()
            if got != expected:
                return f"{algorithm} is {got}, expected {expected}"
    return ""


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__
