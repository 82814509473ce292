"""A small HTTP server of a folder with Range requests, and what servers and networks do wrong."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Attributes to set.

    ranges: False ignores the Range header, as some servers do.
    failures: what the next requests for a tar get in place of an answer: an HTTP status, or "drop": half of the answer.
    requests: how often each file was asked for.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, folder))
        self.ranges = True
        self.failures: list[int | str] = []
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RangeServer

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        status, start, end = 200, 0, path.stat().st_size
        failure = self.server.failures.pop(0) if self.server.failures and path.suffix == ".tar" else None
        if isinstance(failure, int):
            return self.send_error(failure)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
        if match and self.server.ranges:
            status, start = 206, int(match[1])
            if start >= end:
                return self.send_error(416)
            end = min(end, int(match[2]) + 1) if match[2] else end
        with path.open("rb") as handle:
            handle.seek(start)
            content = handle.read(end - start)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if failure == "drop":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        self.wfile.write(content)
        return None

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder on 127.0.0.1."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
