"""What an evaluation reports, prints and leaves behind."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile

from asr.checkpoint import save
from asr.cli import main
from asr.decode.evaluate import (
    MAX_SHOWN_CHARACTERS,
    NUM_SHOWN,
    Evaluation,
    Row,
    evaluate_files,
    examples,
    print_report,
)
from asr.decode.recognizer import Recognizer
from asr.metrics.error_rates import Edits, character_edits, word_edits
from asr.types import Transcript, Utterance
from tests.support.align import small_checkpoint
from tests.unit.decode.test_stream import audio


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


def test_words_where_none_were_said_are_no_rate_either(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation([row("a", "", "x")])
    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    assert (summary["wer"], summary["cer"], summary["words"]["insertions"]) == (None, None, 1)
    print_report("test", evaluation)
    assert "inf" not in capsys.readouterr().out
    assert Evaluation([row("a", "", "")]).summary()["wer"] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, four seconds of noise in as many files, and a manifest of them that knows no lengths."""
    folder = tmp_path_factory.mktemp("evaluate")
    made = small_checkpoint()
    weights = made.model.state_dict()
    save(folder / "model", weights=weights, config=made.config, tokenizer=made.tokenizer, provenance={})
    lines = []
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", audio(1.0, seed=number), 16_000)
        lines.append({"audio": f"{number}.wav", "text": "so it is", "seconds": 0})
    (folder / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("stated", [0.0, 1e6])
def test_batches_are_cut_by_the_files_own_lengths(folder: Path, monkeypatch: pytest.MonkeyPatch, stated: float) -> None:
    recognizer, sizes = Recognizer(small_checkpoint(), "cpu"), []

    def transcribe_batch(batch: Sequence[object]) -> list[Transcript]:
        sizes.append(len(batch))
        return [Transcript("", (), 0.0)] * len(batch)

    monkeypatch.setattr(recognizer, "transcribe_batch", transcribe_batch)
    utterances = [Utterance(str(number), str(folder / f"{number}.wav"), "so", stated) for number in range(4)]
    gone = Utterance("gone", str(folder / "gone.wav"), "so", stated)
    evaluation = evaluate_files(recognizer, [*utterances, gone], batch_seconds=2.0)
    assert [row.id for row in evaluation.rows] == ["0", "1", "2", "3"]
    assert list(evaluation.failures) == ["gone"]
    assert "gone.wav: No such file" in evaluation.failures["gone"]
    assert max(sizes) == 2


@pytest.mark.parametrize("option", ["--output", "--reliability"])
def test_figures_are_printed_where_files_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").touch()
    arguments = [str(folder / "model"), str(folder / "dev.jsonl"), "--device", "cpu", "--json"]
    arguments += ["--output", str(tmp_path / "rows.jsonl"), option, str(tmp_path / "file" / "x.png")]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["utterances"] == 4
    assert captured.err.startswith(f"asr evaluate: {tmp_path}/file/x.png: cannot be written: ")


def test_a_calibration_says_what_it_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = {"audio": str(tmp_path / "gone.wav"), "text": "so", "seconds": 1, "id": "gone"}
    manifest = folder / "gone.jsonl"
    manifest.write_text((folder / "dev.jsonl").read_text() + json.dumps(gone) + "\n")
    picture = tmp_path / "new" / "x.png"
    arguments = [str(folder / "model"), str(manifest), "--device", "cpu", "--picture", str(picture)]
    assert main(["calibrate", *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"asr calibrate: left out gone: {tmp_path}/gone.wav: No such file")
    assert errors[1:] == ["asr calibrate: 1 of 5 utterances could not be read"]


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
