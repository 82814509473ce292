"""The ledger: each unusable utterance once, whatever is killed or repeated, and whoever else writes."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest

from asr.audio.header import AudioFault
from asr.data.ledger import Ledger, Reason
from asr.errors import DataError
from asr.types import Drop


def test_counts_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    ledger = Ledger(path)
    assert ledger.summary() == "none"
    assert not path.exists()
    for name in ("a", "b", "c\n"):
        ledger.add(Drop(name, Reason.TOO_LONG, "40.00 s", "train"))
    ledger.add(Drop("a", "truncated", "\u00fcber", "test"))
    assert ledger.counts() == {Reason.TOO_LONG: 3, Reason.TRUNCATED: 1}
    assert ledger.summary() == f"3 too_long, 1 truncated ({path})"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"id": "a", "reason": "too_long", "detail": "40.00 s", "source": "train"}
    assert lines[3] == {"id": "a", "reason": "truncated", "detail": "\u00fcber", "source": "test"}


def test_a_repeated_job_counts_each_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for attempt in range(3):
        ledger = Ledger(path)
        assert ledger.add(Drop("a", Reason.MISSING, "")) is (attempt == 0)
        assert ledger.add(Drop("a", Reason.MISSING, "")) is False
        assert len(ledger) == 1
    assert len(path.read_text().splitlines()) == 1


def test_open_ledgers_know_what_others_have_entered(tmp_path: Path) -> None:
    one, other = (Ledger(tmp_path / "ledger.jsonl") for _ in range(2))
    assert one.add(Drop("a", Reason.MISSING, ""))
    assert not other.add(Drop("a", Reason.MISSING, ""))
    assert other.add(Drop("a", Reason.TRUNCATED, "")), "another reason is news"
    assert other.add(Drop("a", Reason.MISSING, "", "test"))
    assert not one.add(Drop("a", Reason.TRUNCATED, ""))
    assert len(one) == len(other) == 2


def test_what_can_be_used_now_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for name, source in (("a", "train"), ("b", "train"), ("a", "test"), ("c", "train")):
        ledger.add(Drop(name, Reason.TRUNCATED, "", source))
    before = path.stat().st_ino
    ledger.forget("train", {"x"})
    assert path.stat().st_ino == before, "nothing to forget: not written"
    ledger.forget("train", {"a", "b"})
    assert ledger.add(Drop("d", Reason.MISSING, "", "train"))
    assert ledger.add(Drop("b", Reason.TRUNCATED, "", "train")), "it has been damaged again"
    for one in (ledger, Ledger(path)):
        expected = [("test", "a"), ("train", "c"), ("train", "d"), ("train", "b")]
        assert [(drop.source, drop.id) for drop in one.drops] == expected


def work(path: Path, number: int, barrier, queue) -> None:
    """Enter 100 utterances that all processes meet, and 100 of this one's own; give how many were new."""
    ledger = Ledger(path)
    barrier.wait()
    new = 0
    for i in range(100):
        new += ledger.add(Drop(f"all-{i}", Reason.TRUNCATED, "x" * 300))
        assert ledger.add(Drop(f"{number}-{i}", Reason.UNREADABLE, "y" * 9000))
    queue.put(new)


def test_processes_share_a_ledger(tmp_path: Path) -> None:
    path, count = tmp_path / "ledger.jsonl", 3
    context = multiprocessing.get_context("spawn")
    queue, barrier = context.Queue(), context.Barrier(count)
    processes = [context.Process(target=work, args=(path, number, barrier, queue)) for number in range(count)]
    for process in processes:
        process.start()
    assert sum(queue.get(timeout=60) for _ in processes) == 100, "each was news to one of them"
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert len(names) == len(set(names)) == 100 + 100 * count


def test_a_line_cut_off_by_a_kill_makes_way(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(Drop("a", Reason.MISSING, ""))
    path.write_bytes(path.read_bytes() + b'{"id": "b", "rea')
    ledger = Ledger(path)
    assert len(ledger) == 1
    assert ledger.add(Drop("b", Reason.MISSING, ""))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert len(Ledger(path)) == 2


@pytest.mark.parametrize("line", [b"no json", b'{"id": "a", "reason": "bad luck"}', b"[1]", b"\xff"])
def test_another_file_is_not_taken_for_a_ledger(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"id": "a", "reason": "missing"}\n' + line + b"\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: not a ledger line: got")):
        Ledger(path)


def test_reasons_of_audio_are_reasons() -> None:
    assert {*AudioFault.__args__} <= {reason.value for reason in Reason}
