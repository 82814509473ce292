"""`asr ledger` on a corpus with wrong transcripts: they come first, and the cleaned manifest lacks them."""

import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import soundfile

from asr.cli import main
from asr.config import load
from asr.data.ledger import Ledger
from asr.data.manifest import read_manifest, write_manifest
from asr.data.shard_writer import write_shards
from asr.decode.suspects import read_losses
from asr.types import Utterance
from tests.integration.conftest import Start, finish
from tests.support import train_tones
from tests.support.damage import damage
from tests.support.tones import RATE_HZ, prepare, sing

SWAPPED = (5, 11, 17, 23, 29, 35)  # each of these utterances has the next one's transcript


@pytest.fixture(scope="module")
def run(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tone language, 6 of 48 transcripts swapped, one utterance too short; trained for 20 epochs."""
    folder = tmp_path_factory.mktemp("swapped")
    config = load(train_tones.ROOT / "recipes" / "an4", [*train_tones.SETTINGS, f"data.cache={folder}"])
    shards = prepare(config)["train"]
    sung = read_manifest(folder / "wav" / "train.jsonl")
    wrong = {i: sung[j].text for i, j in zip(SWAPPED, [*SWAPPED[1:], SWAPPED[0]], strict=True)}
    assert all(text != sung[i].text for i, text in wrong.items())
    said = [replace(utterance, text=wrong.get(i, utterance.text)) for i, utterance in enumerate(sung)]
    short = folder / "wav" / "short.wav"
    soundfile.write(short, sing("a")[: RATE_HZ // 20], RATE_HZ)
    said.append(Utterance("short", str(short), "a", 0.05))
    shards.rename(folder / "unused")
    write_shards(said, shards, sample_rate_hz=RATE_HZ, ledger=Ledger(folder / "ledger.jsonl"))
    write_manifest(shards / "manifest.jsonl", said)
    run = folder / "run"
    finish(start([f"data.cache={folder}", f"run_dir={run}", "trainer.max_epochs=20", "stack.hidden_size=32"]))
    return run


@pytest.fixture(scope="module")
def found(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `asr ledger --json --clean` gives; the manifest goes to `run`/clean.jsonl."""
    output = StringIO()
    with redirect_stdout(output):
        assert main(["ledger", str(run), "--top=6", "--json", f"--clean={run}/clean.jsonl", "--device=cpu"]) == 0
    return json.loads(output.getvalue())


def test_swapped_transcripts_come_first(found: dict[str, Any]) -> None:
    assert {row["id"] for row in found["suspicious"]} == {f"train-{i:03d}" for i in SWAPPED}
    assert found["utterances"] == 48
    for row in found["suspicious"]:
        assert row["loss"] > 2 * row["typical_loss"] == 2 * found["median_loss"]
        assert row["contradiction"] > 0.5
        assert row["heard"] != row["text"]
        assert len(row["word_log_probs"]) == len(row["text"].split())
        assert "".join(token["text"] for token in row["tokens"]) == row["text"]


def test_what_was_left_out_is_listed(found: dict[str, Any]) -> None:
    assert [(drop["id"], drop["source"], drop["reason"]) for drop in found["left_out"]] == [
        ("short", "train", "too_short")
    ]


def test_the_cleaned_manifest_lacks_those_listed(run: Path, found: dict[str, Any]) -> None:
    before = read_manifest(run.parent / "train" / "manifest.jsonl")
    wrong = {row["id"] for row in found["suspicious"]}
    assert read_manifest(run / "clean.jsonl") == [utterance for utterance in before if utterance.id not in wrong]


def test_above(run: Path, found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All above a loss leave the manifest, however many are listed."""
    least = min(row["loss"] for row in found["suspicious"])
    clean = tmp_path / "clean.jsonl"
    assert main(["ledger", str(run), "--top=2", f"--above={least - 0.01}", f"--clean={clean}", "--device=cpu"]) == 0
    shown = capsys.readouterr()
    assert f"{clean}: 43 of 49 utterances, without 6 suspicious ones" in shown.err
    assert read_manifest(clean) == read_manifest(run / "clean.jsonl")
    worst = max(found["suspicious"], key=lambda row: row["suspicion"])
    assert f"   1 {worst['id']} of train, {worst['seconds']:.2f} s: loss {worst['loss']:.2f} (" in shown.out
    assert "REF: " in shown.out
    assert "\n   3 " not in shown.out
    assert "left out: 1 too_short\n     short of train: too_short: 0.05 s, data.min_seconds is 0.1\n" in shown.out
    assert main(["ledger", str(run), "--above=1000"]) == 0
    assert "   1 " not in capsys.readouterr().out


def test_wrong_use(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *arguments: str, status: int = 1) -> None:
        with pytest.raises(SystemExit) as left:
            main(["ledger", *arguments, "--device=cpu"])
        assert left.value.code == status
        assert message in capsys.readouterr().err

    refused("--top: got 0, expected 1 or more", str(run), "--top=0", status=2)
    refused(f"{tmp_path}: no checkpoint here; expected a run folder", str(tmp_path))
    clean = tmp_path / "clean.jsonl"
    refused(f"{clean}: not written: all 48 utterances", str(run), "--above=0", f"--clean={clean}")
    assert not clean.exists()
    shards = run.parent / "train"
    shards.rename(run.parent / "moved")
    try:
        refused(f"{shards}: no shards here", str(run))
        (run.parent / "unused").rename(shards)
        refused(f"{shards}: got other utterances than {run} was trained on", str(run))
        shards.rename(run.parent / "unused")
    finally:
        (run.parent / "moved").rename(shards)


def test_audio_that_cannot_be_read_any_more(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is listed with its loss and the reason; the rest goes on."""
    tar = run.parent / "train" / "shard-000000.tar"
    sound = tar.read_bytes()
    damage(tar.parent, f"train-{SWAPPED[0]:03d}")
    try:
        assert main(["ledger", str(run), "--top=6", "--device=cpu"]) == 1
    finally:
        tar.write_bytes(sound)
    shown = capsys.readouterr()
    assert "not recognised: " in shown.out
    assert shown.out.count("     HYP:") == 5
    assert "asr ledger: 1 of 6 utterances could not be recognised" in shown.err


def test_two_ranks_have_the_losses_of_one(start: Start, tmp_path: Path) -> None:
    """But for rounding; dropout differs by rank, so there is none."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for number, run in enumerate(runs, 1):
        off = ["stack.dropout=0", "head.dropout=0"]
        finish(start([f"run_dir={run}", f"trainer.devices={number}", "trainer.max_epochs=1", *off]))
    one, two = (read_losses(run) for run in runs)
    assert one.corpus.ids == two.corpus.ids
    assert len(one.losses) == 48
    assert float(abs(one.losses - two.losses).max()) <= 1e-3
