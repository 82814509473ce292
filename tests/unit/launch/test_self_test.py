"""The self-test: what it compares and what it says; tests/integration/test_launch.py has ranks as processes."""

from pathlib import Path

import pytest

from asr.launch.self_test import absent, compare, shards_digest, wrong_sums

GOOD = {"python": "3.11.7", "torch": "2.14.1", "asr": "0.1.0 (aa)", "recipe": "cc", "shards": "3 (dd)", "device": "CPU"}


def everyone(**changes: dict[int, str]) -> list[dict[str, str]]:
    """Four ranks on two hosts that agree but for these changes: key -> rank -> value."""
    ranks = [GOOD | {"host": f"node{rank // 2}"} for rank in range(4)]
    for key, values in changes.items():
        for rank, value in values.items():
            ranks[rank][key] = value
    return ranks


def test_ranks_that_agree_are_right() -> None:
    assert compare(everyone()) == []
    gpus = everyone(device_id={0: "GPU-a", 1: "GPU-b", 2: "GPU-a", 3: "GPU-b"})  # the same name on another host
    assert compare(gpus) == []


@pytest.mark.parametrize("key", ["python", "torch", "asr", "recipe", "shards"])
def test_the_rank_that_differs_is_named(key: str) -> None:
    (line,) = compare(everyone(**{key: {2: "other"}}))
    assert line.startswith(f"rank 2 on node1: {key} is other, on 3 of 4 ranks it is {GOOD[key]}; ")


def test_everything_that_is_wrong_is_said() -> None:
    wrong = compare(
        everyone(torch={2: "2.13", 3: "2.13"}, problem={1: "sees 0 GPUs"}, device_id={0: "a", 1: "a", 2: "a", 3: "b"})
    )
    assert [line.partition(";")[0] for line in wrong] == [
        "rank 1 on node0: sees 0 GPUs",
        "rank 2 on node1: torch is 2.13, on 2 of 4 ranks it is 2.14.1",
        "rank 3 on node1: torch is 2.13, on 2 of 4 ranks it is 2.14.1",
        "rank 1 on node0: has the same GPU as rank 0, a",
    ]


def test_a_rank_that_could_not_compose_is_compared_in_nothing_else() -> None:
    ranks = everyone()
    ranks[3] = {"host": "node1", "problem": "1 mistake"}
    assert compare(ranks) == ["rank 3 on node1: 1 mistake"]


def test_missing_ranks_are_named() -> None:
    ranks = everyone()
    ranks[1] = ranks[3] = {}
    assert absent(ranks, 30) == ["rank 1, 3: not heard of within 30 s; ranks came from node0 (1), node1 (1)"]


def test_wrong_sums_name_both_ends() -> None:
    good = {"wrong": [], "seconds": 0.1}
    results = [good, good | {"wrong": [2]}, {"error": "timed out"}, {}]
    assert wrong_sums(results, everyone()) == [
        "rank 1 on node0: got a wrong sum for the numbers of rank 2 on node1",
        "rank 2 on node1: the sum over all ranks failed: timed out",
        "rank 3 on node1: began the sum and was not heard of again",
    ]


def test_the_shards_digest_sees_what_a_run_would_read(tmp_path: Path) -> None:
    def make(folder: str, header: str, size: int) -> None:
        split = tmp_path / folder / "corpus" / "v1" / "train"
        split.mkdir(parents=True, exist_ok=True)
        (split / "shard-000000.jsonl").write_text(header + "\nrow\n")
        (split / "shard-000000.tar").write_bytes(bytes(size))

    assert shards_digest(tmp_path / "nothing") == "none yet"
    make("a", "plan 1", 10)
    make("b", "plan 1", 10)
    first = shards_digest(tmp_path / "a")
    assert first.startswith("1 (")
    assert shards_digest(tmp_path / "b") == first
    raw = tmp_path / "b" / "corpus" / "raw"
    raw.mkdir()
    (raw / "shard-000000.jsonl").write_text("not a shard")
    (tmp_path / "b" / "ledger.jsonl").write_text("written meanwhile")
    assert shards_digest(tmp_path / "b") == first
    make("b", "plan 2", 10)
    assert shards_digest(tmp_path / "b") != first
    make("b", "plan 1", 9)
    assert shards_digest(tmp_path / "b") != first
    (tmp_path / "b" / "corpus" / "v1" / "train" / "shard-000000.tar").unlink()
    assert shards_digest(tmp_path / "b") != first
