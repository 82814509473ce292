"""Downloads from a server on this machine that misbehaves in the usual ways."""

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr.data import download as module
from asr.data.download import download, is_unpacked, unpack
from asr.errors import DataError
from tests.support.full_disk import full_disk

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
CUT_BYTES = 100_000


class Handler(BaseHTTPRequestHandler):
    """/whole serves ranges; /noranges does not; /cut sends CUT_BYTES a request; /other has other content; else 404."""

    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        if self.path == "/busy" and len(self.requests) < 3:
            return self.send_error(503)
        if self.path not in {"/whole", "/noranges", "/cut", "/other", "/busy", "/dead"}:
            return self.send_error(404)
        content = CONTENT[::-1] if self.path == "/other" else CONTENT
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.path != "/noranges" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.path == "/cut":
            body = body[:CUT_BYTES]
        elif self.path == "/dead":
            body = b""
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a running server; `Handler.requests` has what it was asked."""
    monkeypatch.setattr(module, "BACK_OFF_SECONDS", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["whole", "noranges", "cut", "busy"])
def test_complete(server: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / "file"
    download(f"{server}/{kind}", path, sha256=SHA256, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file"]
    if kind == "cut":
        assert [wanted for _, wanted in Handler.requests] == [None, "bytes=100000-", "bytes=200000-"]
    count = len(Handler.requests)
    download(f"{server}/{kind}", path, sha256=SHA256)
    assert len(Handler.requests) == count, "what is there is not fetched again"


@pytest.mark.parametrize("kind", ["whole", "noranges"])
@pytest.mark.parametrize("come", [1, 150_000, len(CONTENT)])
def test_an_earlier_call_is_resumed(server: str, tmp_path: Path, kind: str, come: int) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:come])
    download(f"{server}/{kind}", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.requests == [(f"/{kind}", f"bytes={come}-")]


def test_a_part_of_another_file_is_given_up(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(bytes(len(CONTENT) + 5))  # longer than the file: the server says so
    download(f"{server}/whole", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    (tmp_path / "two.part").write_bytes(bytes(1000))  # shorter: only the checksum tells
    download(f"{server}/whole", tmp_path / "two", sha256=SHA256, mirrors=[f"{server}/whole"])
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_wrong_checksum(server: str, tmp_path: Path) -> None:
    got = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(DataError, match=f"sha256 is {got}, expected {SHA256}; the file was removed"):
        download(f"{server}/other", tmp_path / "file", sha256=SHA256)
    assert os.listdir(tmp_path) == []
    with pytest.raises(DataError, match=f"md5 is .*, expected {MD5}"):
        download(f"{server}/other", tmp_path / "file", md5=MD5)
    (tmp_path / "file").write_bytes(b"put here by hand")
    with pytest.raises(DataError, match=f"/file: sha256 is .*, expected {SHA256}; remove the file"):
        download(f"{server}/whole", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").exists(), "what a user put there is not removed"


@pytest.mark.parametrize("first", ["missing", "other", "dead"])
def test_mirrors(server: str, tmp_path: Path, first: str) -> None:
    download(f"{server}/{first}", tmp_path / "file", sha256=SHA256, mirrors=[f"{server}/gone", f"{server}/cut"])
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path for path, _ in Handler.requests].count("/gone") == 1


def test_nothing_works(server: str, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9/file"  # the discard port: nobody listens
    with pytest.raises(DataError) as caught:
        download(closed, tmp_path / "file", mirrors=[f"{server}/missing", f"{server}/dead"])
    message = str(caught.value)
    assert f"{closed}: " in message
    assert "Connection refused" in message
    assert f"{server}/missing: Not Found" in message
    assert f"{server}/dead: the connection broke off after 0 of 300000 bytes" in message
    assert "https_proxy" in message
    assert f"put it at {tmp_path / 'file'}" in message
    assert not (tmp_path / "file").exists()


def test_full_disk(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(tmp_path / "disk", monkeypatch) as folder:
        if not os.path.ismount(folder):
            pytest.skip("needs a small file system, and none can be mounted")
        with pytest.raises(DataError, match=r"file\.part: cannot be written: No space left on device; make room"):
            download(f"{server}/whole", folder / "file")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_unpack_once(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tar.gz", {"a/b/c.txt": b"c", "a/d.txt": b"d" * 100_000})
    folder = tmp_path / "out"
    assert not is_unpacked(packed, folder)
    unpack(packed, folder)
    assert is_unpacked(packed, folder)
    assert (folder / "a" / "b" / "c.txt").read_bytes() == b"c"
    packed.unlink()  # may go to save room
    (folder / "a" / "d.txt").write_bytes(b"changed")
    unpack(packed, folder)
    assert (folder / "a" / "d.txt").read_bytes() == b"changed"


def test_unpack_refuses(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tar.gz", {"a.txt": os.urandom(50_000)})
    data = packed.read_bytes()
    for damaged in (data[:20_000], data[:1000] + bytes(100) + data[1100:], b"no archive", b""):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.tar\.gz: cannot be unpacked into"):
            unpack(packed, tmp_path / "out")
        assert not is_unpacked(packed, tmp_path / "out")
    for name in ("../outside.txt", "/outside.txt", "a/../../outside.txt"):
        archive(packed, {name: b"gotcha"})
        try:
            unpack(packed, tmp_path / "in" / "deep")
        except DataError as error:
            assert "outside" in str(error)  # noqa: PT017 - an absolute name is made relative instead of refused
        assert not (tmp_path / "outside.txt").exists()
        assert not (tmp_path / "in" / "outside.txt").exists()
        assert not Path("/outside.txt").exists()
    with tarfile.open(packed, "w:gz") as tar:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DataError, match="link"):
        unpack(packed, tmp_path / "links")
