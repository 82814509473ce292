"""What an evaluation reports, prints and leaves behind."""

import json
from pathlib import Path

import pytest

from asr.decode.evaluate import MAX_SHOWN_CHARACTERS, NUM_SHOWN, Evaluation, Row, examples, print_report
from asr.metrics.error_rates import Edits, character_edits, word_edits


def row(name: str, said: str, heard: str) -> Row:
    return Row(name, said, heard, word_edits(said, heard), character_edits(said, heard))


def test_edits_are_summed_before_they_are_divided() -> None:
    evaluation = Evaluation([row("a", "a b c d", "a b c d"), row("b", "x", "y z")])
    assert evaluation.words == Edits(1, 0, 1, 5)
    assert evaluation.summary()["wer"] == 2 / 5


def test_nothing_read_is_no_rate_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation(failures={"a": "a.flac: truncated"})
    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    assert (summary["wer"], summary["cer"], summary["utterances"], summary["unreadable"]) == (None, None, 0, 1)
    print_report("test", evaluation)
    said = capsys.readouterr().out
    assert "none" in said
    assert "0.00 %" not in said
    assert "a.flac: truncated" in said


@pytest.mark.parametrize("count", [1, 3, NUM_SHOWN // 2, NUM_SHOWN, 100])
def test_each_example_is_shown_once_and_the_worst_first(count: int) -> None:
    rows = [row(str(i), "a b c", "x " * (i % 5)) for i in range(count)]
    shown = examples(rows)
    assert len({r.id for r in shown}) == len(shown) == min(count, NUM_SHOWN)
    half = shown[: NUM_SHOWN // 2]
    assert [r.words.total for r in half] == sorted((r.words.total for r in rows), reverse=True)[: NUM_SHOWN // 2]


def test_long_texts_are_cut_on_the_screen_and_whole_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = "wrong " * 1000
    evaluation = Evaluation([row("a", "right", heard)])
    print_report("test", evaluation)
    out = capsys.readouterr().out
    assert "..." in out
    assert out.count("wrong") <= MAX_SHOWN_CHARACTERS / 6 + 1
    evaluation.write(tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text())["hypothesis"] == heard
