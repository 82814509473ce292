"""A process that does not answer any more is killed from outside; one that answers, or was stopped, is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
START = """
import ctypes, os, sys, time
from asr.train.heartbeat import Heartbeat

heartbeat = Heartbeat(seconds=0.6, pause=0.1)
print(heartbeat._process.pid, flush=True)
for number in range(8):
    heartbeat.note("a longer text" if number < 7 else "at 7")
    heartbeat.beat()
    time.sleep(0.1)
"""


def start(rest: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", START + rest]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize(
    ("rest", "where"),
    [
        ("while True: ctypes.PyDLL(None).sleep(60)", 'File "<string>", line 11 in <module>'),
        ("time.sleep(60)", 'File "<string>", line 11 in <module>'),
    ],
    ids=["the lock is kept", "no beat"],
)
def test_who_does_not_answer_is_killed_and_says_where_it_was(rest: str, where: str) -> None:
    process = start(rest)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    lines = errors.splitlines()
    assert lines[0] == "at 7"
    assert "this process has not answered for 0.6 s" in lines[1]
    assert where in errors


def test_one_that_is_stopped_is_killed() -> None:
    process = start("time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGSTOP)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert "this process has not answered" in errors


def test_who_is_stopped_together_with_the_watcher_goes_on() -> None:
    """As a cluster suspends a job."""
    process = start("heartbeat.stop()")
    assert process.stdout is not None
    watcher = int(process.stdout.readline())
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in (watcher, process.pid):
            os.kill(pid, number)
        time.sleep(1.0)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("rest", ["heartbeat.stop()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_the_watcher_ends_with_the_other(rest: str) -> None:
    process = start(rest)
    _, errors = process.communicate(timeout=30)  # until nobody has its standard error any more
    assert errors == ""


def test_signals_that_all_get_do_not_end_the_watch() -> None:
    process = start("while True: ctypes.PyDLL(None).sleep(60)")
    assert process.stdout is not None
    watcher = int(process.stdout.readline())
    time.sleep(0.3)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.kill(watcher, number)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def test_a_watcher_that_is_gone_stops_nobody() -> None:
    process = start("heartbeat._process.kill(); heartbeat._process.wait(); heartbeat.beat(); heartbeat.stop()")
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
