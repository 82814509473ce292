"""Which rank the others wait for, from what each has noted."""

import pytest

from asr.train.watchdog import Doing, report


def doing(what: str, noted: int, sums: tuple[int, int] = (0, 0), ids: tuple[str, ...] = ()) -> Doing:
    return Doing(
        host="here", step=7, what=what, ids=ids, noted=noted, sums_begun=sums[0], sums_ended=sums[1], sum_size=24
    )


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        # one still reads, the other waits for its gradients
        ({0: (doing("the backward pass", 9), 0.1), 1: (doing("reading the next batch", 7), 0.1)}, "wait for rank 1"),
        # one has not come to the second sum of the same pass
        ({0: (doing("forward", 9, (1, 1)), 0.1), 1: (doing("forward", 9, (2, 1)), 0.1)}, "wait for rank 0"),
        # one says nothing any more, wherever it was
        ({0: (doing("forward", 9), 0.1), 1: (doing("forward", 9), 40.0)}, "wait for rank 1"),
        ({0: (doing("forward", 9), 40.0), 1: (doing("forward", 9), 0.1), 2: (doing("x", 3), 50.0)}, "for rank 0, 2"),
        ({0: (doing("forward", 9), 0.1), 1: (doing("forward", 9), 0.1)}, "all are at the same place"),
    ],
)
def test_who_is_waited_for(others: dict[int, tuple[Doing, float]], verdict: str) -> None:
    lines = report(0, others[0][0], others, 60.0, world_size=len(others)).splitlines()
    assert verdict in lines[-1]
    assert len(lines) == 2 + len(others)


def test_what_a_line_says() -> None:
    mine = doing("the forward pass", 9, (3, 2), ("a-1", "b-2"))
    silent = doing("reading the next batch", 8, (2, 2))
    text = report(0, mine, {0: (mine, 0.0), 1: (silent, 59.0)}, 60.0, world_size=2)
    assert "rank 0 on here: nothing has gone on for 60 s (trainer.stall_seconds)" in text
    where = "step 7, the forward pass, utterances a-1 b-2; in sum 3 over ranks, of 24 numbers"
    assert f"rank 0 on here: {where}" in text
    assert "step 7, reading the next batch; after sum 2 over ranks, of 24 numbers; last heard of 59 s before" in text


def test_a_process_alone() -> None:
    text = report(0, doing("reading the next batch", 2), {}, 60.0, world_size=1)
    assert text.splitlines()[1:] == ["  step 7, reading the next batch"]


@pytest.mark.parametrize("heard", [{0: (doing("forward", 9), 0.1)}, {}], ids=["of itself", "of nobody"])
def test_a_rank_that_never_told_anything_is_the_one_waited_for(heard: dict[int, tuple[Doing, float]]) -> None:
    """It stalled before its first word, or the rank that holds what they tell is gone."""
    lines = report(0, doing("forward", 9), heard, 60.0, world_size=2).splitlines()
    assert lines[1:] == [
        "  rank 0 on here: step 7, forward",
        "  rank 1: never heard of",
        "  the others wait for rank 1",
    ]
