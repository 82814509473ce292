"""`asr decode`, `asr evaluate` and `asr.load` on a trained model, as a user calls them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import asr
from asr.cli import run as run_command
from tests.integration.conftest import Start, finish
from tests.support.tones import RATE_HZ, sing, texts, write_corpus

SAYINGS = ["abc", "a b", "cc ba", "b"]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SAYINGS as wav files and a manifest."""
    folder = tmp_path_factory.mktemp("songs")
    write_corpus(folder, SAYINGS, "song")
    return folder


def test_one_file_prints_its_text(trained: Path, songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("decode", [str(trained), str(songs / "song-000.wav")]) == 0
    assert capsys.readouterr().out == "abc\n"


def test_folder_and_glob_keep_order(trained: Path, songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argument in (str(songs), str(songs / "*.wav")):
        assert run_command("decode", [str(trained), argument]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{songs}/song-{i:03d}.wav\t{text}" for i, text in enumerate(SAYINGS)]


def test_json_has_words_with_seconds_and_confidence(
    trained: Path, songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("decode", [str(trained), "--json", str(songs / "song-002.wav")]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == "cc ba"
    assert [word["text"] for word in row["words"]] == ["cc", "ba"]
    seconds = soundfile.info(songs / "song-002.wav").duration
    times = [t for word in row["words"] for t in (word["start_seconds"], word["end_seconds"])]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= seconds
    assert all(0 < word["confidence"] <= 1 for word in row["words"])


def test_a_transcript_does_not_depend_on_its_batch(trained: Path, songs: Path) -> None:
    recognizer = asr.load(trained)
    sources = [recognizer.file_source(songs / f"song-{i:03d}.wav") for i in range(len(SAYINGS))]
    alone = [recognizer.transcribe(songs / f"song-{i:03d}.wav") for i in range(len(SAYINGS))]
    for batch_seconds in (0.1, 3.0, 600.0):
        together = dict(recognizer.transcribe_many(sources, batch_seconds=batch_seconds))
        for i, transcript in enumerate(alone):
            assert together[i].text == transcript.text == SAYINGS[i]
            assert together[i].log_prob == pytest.approx(transcript.log_prob, abs=1e-3)
            assert [w.start_seconds for w in together[i].words] == [w.start_seconds for w in transcript.words]


def test_unreadable_files_are_named_and_the_rest_goes_on(
    trained: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF not really")
    status = run_command(
        "decode", [str(trained), str(songs / "song-000.wav"), str(broken), str(songs / "song-001.wav")]
    )
    captured = capsys.readouterr()
    assert status == 1
    assert [line.split("\t")[1] for line in captured.out.splitlines()] == ["abc", "a b"]
    assert "broken.wav" in captured.err
    assert "1 of 3 files could not be read" in captured.err


@pytest.mark.parametrize("samples", [0, 1, 300, 16000])
def test_empty_and_silent_audio_has_no_words(trained: Path, tmp_path: Path, samples: int) -> None:
    path = tmp_path / "quiet.wav"
    soundfile.write(path, np.zeros(samples), RATE_HZ)
    transcript = asr.load(trained).transcribe(path)
    assert len(transcript.text) <= 1  # pure digital silence was never in training; nothing to spell a word with
    if samples < 400:
        assert (transcript.text, transcript.words, transcript.log_prob) == ("", (), 0.0)


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_and_stereo(trained: Path, tmp_path: Path, rate: int, channels: int) -> None:
    from asr.audio.resample import resample

    audio = resample(sing("abc", seed=3), RATE_HZ, rate)
    soundfile.write(tmp_path / "song.wav", np.stack([audio] * channels, 1), rate, subtype="FLOAT")
    recognizer = asr.load(trained)
    transcript = recognizer.transcribe(tmp_path / "song.wav")
    expected = recognizer.transcribe(audio, rate)
    assert transcript.text == expected.text
    assert transcript.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
    if rate > RATE_HZ:  # at 8 kHz the upper half of the spectrum is missing, which training never saw
        assert transcript.text == "abc"


def test_samples_can_be_given(trained: Path) -> None:
    recognizer = asr.load(trained)
    assert recognizer.transcribe(sing("cab", seed=9)).text == "cab"
    with pytest.raises(ValueError, match=r"audio: got float64 of shape \(3,\), expected float32"):
        recognizer.transcribe(np.zeros(3))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["{run}", "{empty}/no.wav"], "no such file, folder, or match"),
        (["{run}", "{empty}"], "no audio in this folder"),
        (["{empty}", "{songs}"], "no checkpoint here"),
    ],
)
def test_nothing_to_decode_is_said(
    trained: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command("decode", [name.format(run=trained, empty=tmp_path, songs=songs) for name in names])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err


def test_evaluate(trained: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = [str(trained), str(songs / "song.jsonl"), "--json", "--output", str(output)]
    assert run_command("evaluate", arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["wer"], summary["cer"], summary["utterances"]) == (0, 0, 4)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["reference"] for row in rows] == SAYINGS
    wrong = songs / "wrong.jsonl"
    lines = [json.loads(line) for line in (songs / "song.jsonl").read_text().splitlines()]
    lines[0]["text"] = "ABC, a!"  # normalised as the model's own transcripts were
    wrong.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_command("evaluate", [str(trained), str(wrong), "--output", str(output)]) == 0
    report = capsys.readouterr().out
    assert "14.29 %" in report  # one deletion in seven words


def test_an_average_is_a_model_like_any_other(
    trained: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average, output = tmp_path / "average", tmp_path / "rows.jsonl"
    assert run_command("average", [str(trained), "--last", "2", "--out", str(average)]) == 0
    assert "averaged 2 checkpoints" in capsys.readouterr().out
    assert run_command("evaluate", [str(average), str(songs / "song.jsonl"), "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wer"] <= 0.1


def test_evaluate_names_what_it_cannot_read(
    trained: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (songs / "song.jsonl").read_text().splitlines()]
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, sing("abc"), RATE_HZ)
    flac = bytearray(broken.read_bytes())
    flac[len(flac) // 2] ^= 1
    broken.write_bytes(flac)
    lines[1]["audio"] = str(broken)
    manifest, output = tmp_path / "all.jsonl", tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_command("evaluate", [str(trained), str(manifest), "--output", str(output)]) == 1
    captured = capsys.readouterr()
    assert "not evaluated: song-001" in captured.out
    assert f"1 of {len(lines)} utterances could not be read" in captured.err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], str(broken) in row["error"]) for row in rows if "error" in row] == [("song-001", True)]
    assert len(rows) == len(SAYINGS)
    assert run_command("decode", [str(trained), str(broken)]) == 1
    assert f"{broken}: truncated or damaged" in capsys.readouterr().err


def test_python_m_asr_decode(trained: Path, songs: Path) -> None:
    command = [sys.executable, "-m", "asr.decode", str(trained), str(songs / "song-000.wav")]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert done.stdout == "abc\n"


@pytest.fixture(scope="module")
def streaming(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model of the tone language that streams."""
    run = tmp_path_factory.mktemp("streaming") / "run"
    options = ["stack=gru_streaming", "stack.num_layers=1", "stack.hidden_size=32", "stack.lookahead_frames=4"]
    finish(start([f"run_dir={run}", "trainer.max_epochs=12", *options]))
    return run


def test_a_stream_prints_what_the_file_gives(
    streaming: Path, songs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(songs / name) for name in sorted(p.name for p in songs.glob("*.wav"))[:3]]
    assert run_command("decode", [str(streaming), *paths]) == 0
    offline = capsys.readouterr().out
    assert len(offline.split()) > 3
    assert run_command("decode", [str(streaming), "--stream", "--chunk-ms", "70", *paths]) == 0
    assert capsys.readouterr().out == offline
    assert run_command("decode", [str(streaming), "--batch-seconds", "0.5", *paths]) == 0  # long: piece by piece
    assert capsys.readouterr().out == offline
    assert run_command("decode", [str(streaming), "--stream", "--json", paths[0]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("partial" in line for line in lines[:-1])
    assert lines[-1]["text"] == offline.splitlines()[0].split("\t")[1]
    assert lines[-1]["words"]


def test_the_best_readings_are_listed(
    trained: Path, streaming: Path, songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = str(songs / "song-000.wav")
    assert run_command("decode", [str(trained), song, "--beam", "8", "--nbest", "3"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [rank for rank, _, _ in rows] == ["1", "2", "3"]
    assert rows[0][2] == "abc"
    scores = [float(score) for _, score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    assert run_command("decode", [str(trained), song, "--beam", "8", "--nbest", "3", "--json"]) == 0
    assert [one["text"] for one in json.loads(capsys.readouterr().out)["nbest"]] == [text for _, _, text in rows]
    assert run_command("decode", [str(streaming), song, "--beam", "8", "--nbest", "3", "--json"]) == 0
    offline = json.loads(capsys.readouterr().out)
    assert run_command("decode", [str(streaming), song, "--beam", "8", "--nbest", "3", "--json", "--stream"]) == 0
    streamed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["text"] for one in streamed["nbest"]] == [one["text"] for one in offline["nbest"]]
    with pytest.raises(SystemExit):
        run_command("decode", [str(trained), song, "--nbest", "3"])
    assert "--nbest: got 3 with greedy search" in capsys.readouterr().err


def test_streaming_can_be_checked(
    streaming: Path, trained: Path, songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("check streaming", [str(streaming), str(songs)]) == 0
    assert "streaming equals offline" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command("check streaming", [str(trained), str(songs)])
    assert "Streamable: " in capsys.readouterr().err


def test_calibrated_words_come_on_time(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    songs = write_corpus(tmp_path / "songs", texts(40, seed=5), "song")
    recognizer, offset = asr.load(run), 0.25  # said so much earlier than the model says
    lines = []
    for song in songs:
        for word in recognizer.transcribe(song.audio).words:
            start, end = word.start_seconds - offset, word.end_seconds - offset - 0.1
            lines.append(f"{song.id} 1 {start:.3f} {end - start:.3f} {word.text}")
    times = tmp_path / "times.ctm"
    times.write_text(";; by hand\n" + "\n".join(lines) + "\n")
    manifest = str(tmp_path / "songs" / "song.jsonl")
    assert run_command("calibrate", [str(run), manifest, "--times", str(times)]) == 0
    out = capsys.readouterr().out
    assert f"{len(lines)} words" in out
    assert "begin +250 ms and end +350 ms late" in out
    mended = asr.load(run)
    for song in songs:
        before, after = recognizer.transcribe(song.audio).words, mended.transcribe(song.audio).words
        for old, new in zip(before, after, strict=True):
            assert new.start_seconds == pytest.approx(max(0, old.start_seconds - offset), abs=0.002)
            assert new.end_seconds == pytest.approx(max(new.start_seconds, old.end_seconds - offset - 0.1), abs=0.002)

    # Calibrating again measures the model itself, not what the first time has mended; and keeps the delays.
    assert run_command("calibrate", [str(run), manifest]) == 0
    assert asr.load(run).calibration == mended.calibration


def test_a_wrong_times_file_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "song.jsonl"
    write_corpus(tmp_path, ["abc"], "song")
    times = tmp_path / "times.ctm"
    for text, message in [("song-000 1 zero 1 abc\n", "times.ctm:1: got"), ("other 1 0 1 abc\n", "no word of it was")]:
        times.write_text(text)
        with pytest.raises(SystemExit):
            run_command("calibrate", [str(trained), str(manifest), "--times", str(times)])
        assert message in capsys.readouterr().err
