"""The sum over ranks: it comes, or who is to blame is named first."""

from collections.abc import Callable

import pytest

from asr.train.doctor.all_reduce import check_all_reduce
from asr.train.doctor.report import Verdict
from tests.support import doctor
from tests.support.doctor import tiny_config

TWO = tiny_config(trainer={"devices": 2})


def test_one_device_has_nothing_to_sum() -> None:
    line = check_all_reduce(tiny_config(), on_gpu=False)
    assert (line.verdict, line.message) == (Verdict.OK, "one device: nothing to sum over")


def test_two_ranks_sum() -> None:
    line = check_all_reduce(TWO, on_gpu=False, timeout_seconds=120)
    assert (line.verdict, line.message) == (Verdict.OK, "gloo over 2 ranks of this machine: each got the sum")


def test_a_rank_that_dies_is_named_before_the_one_that_waits_for_it() -> None:
    line = check_all_reduce(TWO, on_gpu=False, timeout_seconds=24, work=doctor.rank_1_leaves)
    assert line.verdict is Verdict.ERROR
    assert "failed: rank 1: exit status 3" in line.message
    assert len(line.details) == 2
    assert line.details[1].startswith("rank 0: ")
    assert "GLOO_SOCKET_IFNAME" in line.fix


@pytest.mark.parametrize(
    ("work", "first"),
    [
        (doctor.rank_1_hangs, "rank 1: no end within 8 s"),
        (doctor.rank_1_sums_wrongly, "rank 1: got 2.0, expected 3.0"),
    ],
)
def test_other_faults_name_the_rank(work: Callable[..., None], first: str) -> None:
    line = check_all_reduce(TWO, on_gpu=False, timeout_seconds=8, work=work)
    assert (line.verdict, line.details[0]) == (Verdict.ERROR, first)
    assert first in line.message


def test_other_nodes_are_said_to_be_untested() -> None:
    line = check_all_reduce(
        tiny_config(trainer={"num_nodes": 3}), on_gpu=False, timeout_seconds=60, work=doctor.rank_1_sums_wrongly
    )
    assert "gloo over 2 ranks" in line.message
