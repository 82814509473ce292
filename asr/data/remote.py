"""Files on another machine, read by byte ranges: `http://`, `s3://`, `gs://` and whatever else fsspec knows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from asr.data.download import ATTEMPTS, RETRIABLE_STATUS, TIMEOUT_SECONDS
from asr.errors import DataError

BACK_OFF_SECONDS = 1.0  # before the second attempt; doubled for each further one
RANGE_NOT_SATISFIABLE = 416


class Unreachable(DataError):
    """The other machine does not give what it should: no utterance is at fault, and none is dropped for it."""


class Span(NamedTuple):
    """Bytes [start, start + size) of a file."""

    file: str
    start: int
    size: int


class RemoteFolder:
    """The files below a URL. Can be forked, pickled, and used from threads.

    Args:
        url: such as http://host/corpus or s3://bucket/corpus; keys and the like come from fsspec's own configuration.

    Raises:
        DataError: fsspec does not know such URLs, or lacks a package for them.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        _file_system(self.url, os.getpid())

    def file(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            Unreachable: it is not there, or the connection fails again and again.
        """
        return self._fetch([(name, None, None)])[0]

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Parts of files, asked for at the same time. What lies beyond a file's end is left out.

        Raises:
            Unreachable: a file is not there, the connection fails again and again, or the server gives whole files.
        """
        parts = self._fetch([(span.file, span.start, span.start + span.size) for span in spans])
        for span, part in zip(spans, parts, strict=True):
            if len(part) > span.size:
                raise Unreachable(
                    f"{self.file(span.file)}: got {len(part)} bytes, expected at most the {span.size} asked for: the "
                    "server does not support byte ranges (HTTP Range requests); use one that does, such as nginx, "
                    "Apache or an object store, or copy the folder to a local disk"
                )
        return parts

    def _fetch(self, wanted: Sequence[tuple[str, int | None, int | None]]) -> list[bytes]:
        system, root = _file_system(self.url, os.getpid())
        got: dict[int, bytes] = {}
        for attempt in range(1, ATTEMPTS + 1):
            lacking = [i for i in range(len(wanted)) if i not in got]
            if not lacking:
                break
            if attempt > 1:
                time.sleep(BACK_OFF_SECONDS * 2 ** (attempt - 2))
            paths = [f"{root}/{wanted[i][0]}" for i in lacking]
            starts, ends = ([wanted[i][k] for i in lacking] for k in (1, 2))
            for i, answer in zip(lacking, system.cat_ranges(paths, starts, ends, on_error="return"), strict=True):
                if _status(answer) == RANGE_NOT_SATISFIABLE:  # all of it lies beyond the file's end
                    answer = b""
                if isinstance(answer, bytes):
                    got[i] = answer
                elif attempt == ATTEMPTS or _is_permanent(answer):
                    raise Unreachable(f"{self.file(wanted[i][0])}: {_words(answer, attempt)}") from answer
        return [got[i] for i in range(len(wanted))]


@lru_cache
def _file_system(url: str, process: int) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it; one for each process, as connections survive no fork."""
    import fsspec
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # proxies from the environment
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        raise DataError(f"{url}: {error}") from error
    except ValueError as error:
        known = ", ".join(sorted(name for name in fsspec.available_protocols() if "+" not in name))
        raise DataError(f"{url}: {error}; expected a URL that fsspec knows ({known})") from error


def _status(answer: Any) -> int | None:
    """The HTTP status that an error reports, if it does."""
    status = getattr(answer, "status", None)
    return status if isinstance(status, int) else None


def _is_permanent(error: BaseException) -> bool:
    """Whether it is of no use to ask again."""
    if (status := _status(error)) is not None:
        return status not in RETRIABLE_STATUS
    return isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError, ValueError, TypeError))


def _words(error: BaseException, attempt: int) -> str:
    if isinstance(error, FileNotFoundError) or _status(error) == 404:
        return "not found"
    status = _status(error)
    what = f"HTTP status {status} {getattr(error, 'message', '')}" if status else f"{error or type(error).__name__}"
    return f"{what} (attempt {attempt} of {ATTEMPTS})" if attempt > 1 else what
