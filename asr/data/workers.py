"""What a process that works for another one does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent(worker: int = 0) -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, by whatever it was killed.

    Args:
        worker: its number, which torch's DataLoader gives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
