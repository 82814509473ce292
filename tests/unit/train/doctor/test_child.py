"""What is known of processes that end well, badly, or not at all."""

import signal

from asr.train.doctor.child import Child, run_children
from tests.support.doctor import be_killed, hang, leave, speak


def test_what_processes_say_arrives_in_order() -> None:
    assert run_children(speak, [(1, "two"), ()], timeout_seconds=60) == [Child([1, "two"]), Child([])]


def test_an_end_is_told_apart_from_being_killed() -> None:
    (left,) = run_children(leave, [(3,)], timeout_seconds=60)
    assert left == Child(["before"], "exit status 3")
    (left,) = run_children(leave, [(0,)], timeout_seconds=60)
    assert left == Child(["before"])
    killed, terminated = run_children(be_killed, [(signal.SIGKILL,), (signal.SIGTERM,)], timeout_seconds=60)
    assert killed == Child([], "killed by SIGKILL", killed=True)
    assert terminated == Child([], "killed by SIGTERM")


def test_who_hangs_is_stopped_and_what_it_said_is_kept() -> None:
    fast, slow = run_children(hang, [(0.0,), (600.0,)], timeout_seconds=8)
    assert fast == Child(["before"])
    assert slow == Child(["before"], "no end within 8 s", timed_out=True)
