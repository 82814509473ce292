"""A progress bar for jobs on data: on a terminal only, on stderr, with the time that is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress_bar(title: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how far a job is; call what this gives with the amount done since the last call, from any thread.

    Args:
        title: what is being done.
        total: of the whole job; None: not known.
        in_bytes: amounts are bytes; shown with units and speed.
    """
    amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    with _bar(title, total, amount, hidden=False) as done:
        yield done


@contextmanager
def seconds_bar(title: str, total: float, *, hidden: bool = False) -> Iterator[Callable[[float], None]]:
    """Show how far a job on audio is; call what this gives with the seconds done since the last call.

    Args:
        title: what is being done.
        total: seconds of audio of the whole job.
        hidden: show nothing.
    """
    with _bar(title, total, [TaskProgressColumn()], hidden=hidden) as done:
        yield done


@contextmanager
def _bar(
    title: str, total: float | None, amount: list[ProgressColumn], *, hidden: bool
) -> Iterator[Callable[[float], None]]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed would not reach the file that it was sent to
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda amount: progress.advance(task, amount)
