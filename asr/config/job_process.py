"""A sweep's job in a process of its own, for trainings with several ranks."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from asr.errors import TrainingError

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # a run saves on each, and ends with 128 + its number


def run_job(command: Sequence[str]) -> None:
    """Run a job's command to its end.

    Signals that reach this process alone are passed on; a terminal sends Ctrl-C to the job as well.

    Raises:
        TrainingError: the job failed, and has said why.
        SystemExit: a signal stopped it.
    """
    with subprocess.Popen(command) as job:

        def pass_on(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGINT:
                job.send_signal(number)

        handlers = {number: signal.signal(number, pass_on) for number in _STOPS}
        try:
            status = job.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    for number in _STOPS:
        if status in (-number, 128 + number):
            raise SystemExit(128 + number)
    if status:
        raise TrainingError(f"the job's process ended with status {status}")
