"""Work in processes of its own, so that what kills, hangs or fills one is a finding and not the end of the report."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

Work = Callable[..., Any]  # importable by name; what it hands to its first argument, `say`, reaches the parent


@dataclass(slots=True)
class Child:
    """What became of one process: what it said, and, if it did not come to its end, how it ended."""

    said: list[Any] = field(default_factory=list)
    failure: str = ""
    killed: bool = False  # by SIGKILL, as the system does when memory runs out
    timed_out: bool = False


def run_children(work: Work, arguments: Sequence[Sequence[Any]], *, timeout_seconds: float) -> list[Child]:
    """Run `work(say, *arguments[i])` in process i, all at the same time; gives what became of each.

    Args:
        work: a function of a module, as the processes import it.
        arguments: of each process.
        timeout_seconds: for all together; who has not come to an end by then is stopped.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    children = [Child() for _ in arguments]
    processes: list[SpawnProcess] = []
    ends: dict[Any, int] = {}  # what is still open -> number of the process
    for number, values in enumerate(arguments):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(sender, work, values), daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        ends[receiver] = number
    deadline = time.monotonic() + timeout_seconds
    while ends:
        ready: list[Any] = wait(list(ends), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for end in ready:
            try:
                children[ends[end]].said.append(end.recv())
            except EOFError:  # it has ended
                del ends[end]
    for number, (process, child) in enumerate(zip(processes, children, strict=True)):
        if number in ends.values():
            process.kill()
            child.timed_out = True
            child.failure = f"no end within {timeout_seconds:.0f} s"
        process.join()
        if not child.timed_out and process.exitcode:
            child.killed = process.exitcode == -signal.SIGKILL
            child.failure = _how(process.exitcode)
    return children


def _how(exit_code: int) -> str:
    return f"exit status {exit_code}" if exit_code > 0 else f"killed by {signal.Signals(-exit_code).name}"


def _run(sender: Connection, work: Work, values: Sequence[Any]) -> None:
    work(sender.send, *values)
