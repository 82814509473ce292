"""Ends a process that does not answer any more, from outside of it.

Where C code keeps the interpreter's lock, or where the process was stopped, no thread of its own can do that. This file
is also the program of the process that does; it needs nothing but Python.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

STOPPED_PAUSES = 5  # who sees so many pauses pass at once was stopped itself, as its machine or job was
_STDERR = 2
_DUMP_SECONDS = 1.0  # to write down where the threads stand
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # which terminals and clusters send to all


class Heartbeat:
    """A process beside this one that kills it when no `beat` has come for some time; it ends with this one.

    Args:
        seconds: that time.
        pause: between beats, about.
    """

    def __init__(self, *, seconds: float, pause: float) -> None:
        faulthandler.register(signal.SIGUSR2, file=_STDERR, all_threads=True)  # needs no lock
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds), str(pause)]
        self._noted, path = tempfile.mkstemp()  # not the pipe: nobody has to wake up for a note
        os.unlink(path)
        self._process = subprocess.Popen(
            [*command, str(self._noted)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[self._noted]
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def note(self, text: str) -> None:
        """Have the other process say this, should it come to that."""
        with suppress(OSError):  # there is no room where temporary files are
            os.pwrite(self._noted, text.encode(errors="replace") + b"\0", 0)

    def beat(self) -> None:
        """Say that this process goes on."""
        with suppress(OSError):  # somebody has ended the other process, or stopped it
            os.write(self._pipe, b".")

    def stop(self) -> None:
        """Let the other process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        os.close(self._noted)
        faulthandler.unregister(signal.SIGUSR2)


def watch(pid: int, seconds: float, pause: float, noted: int) -> None:
    """Read beats from standard input; kill process `pid` if there are none for `seconds`, and say so on stderr.

    Args:
        pid: of the process.
        seconds: that time.
        pause: between beats, about.
        noted: file descriptor of what the process has noted last.
    """
    heard = looked = time.monotonic()
    while True:
        readable, _, _ = select.select([0], [], [], pause)
        now = time.monotonic()
        if now - looked > STOPPED_PAUSES * pause:
            heard = now
        looked = now
        if readable:
            if not os.read(0, 1 << 16):  # that process has ended
                return
            heard = now
        elif now - heard > seconds:
            break
    last = os.pread(noted, 1 << 20, 0).partition(b"\0")[0].decode(errors="replace")
    text = (
        f"{last}\n  this process has not answered for {seconds:g} s: it was stopped, or C code in it keeps the "
        "interpreter's lock. It is killed; where its threads stand:\n"
    )
    sys.stderr.write(text)
    sys.stderr.flush()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(_DUMP_SECONDS)
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
