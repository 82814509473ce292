"""`asr align`: every format, texts, files and manifests; and what goes wrong."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.checkpoint import save
from asr.cli import main
from asr.decode import _align_formats as formats
from asr.decode.align import Alignment
from asr.types import Word
from tests.support.align import small_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two audio files of 2 s and 0.5 s."""
    folder = tmp_path_factory.mktemp("align")
    made = small_checkpoint()
    weights = made.model.state_dict()
    save(folder / "model", weights=weights, config=made.config, tokenizer=made.tokenizer, provenance={})
    random = np.random.default_rng(0)
    for name, seconds in (("long", 2.0), ("short", 0.5)):
        soundfile.write(folder / f"{name}.wav", 0.1 * random.standard_normal(int(16_000 * seconds)), 16_000)
    return folder


def align(folder: Path, *arguments: object, status: int = 0) -> None:
    assert main(["align", str(folder / "model"), *map(str, arguments), "--device", "cpu"]) == status


def test_text_as_string_and_as_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align(folder, folder / "long.wav", "So it's said.")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert [(line[0], line[1], line[4]) for line in lines] == [("long", "1", word) for word in ("So", "it's", "said.")]
    (tmp_path / "said.txt").write_bytes(b"\xef\xbb\xbfSo it's\r\nsaid.\n")
    align(folder, folder / "long.wav", tmp_path / "said.txt", "--output", tmp_path / "out" / "a.CTM")
    assert (tmp_path / "out" / "a.CTM").read_text() == printed


def test_every_format(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = folder / "long.wav"
    align(folder, audio, "so it is", "--format", "json", "--tokens")
    found = json.loads(capsys.readouterr().out)
    assert found["audio"] == str(audio)
    assert found["seconds"] == 2
    assert [token["text"] for token in found["tokens"]] == list("so it is")
    assert found["words"][0].keys() == {"text", "start_seconds", "end_seconds", "confidence"}
    align(folder, audio, "so it is", "--format", "json")
    assert json.loads(capsys.readouterr().out) == {key: found[key] for key in found if key != "tokens"}
    for suffix, part in ((".TextGrid", 'Object class = "TextGrid"'), (".srt", " --> "), (".json", '"words"')):
        align(folder, audio, "so it is", "--output", tmp_path / f"a{suffix}")
        assert part in (tmp_path / f"a{suffix}").read_text()
    align(folder, audio, "so it is", "--tokens")
    units = [line.split()[4] for line in capsys.readouterr().out.splitlines()]
    assert units == ["s", "o", "<space>", "i", "t", "<space>", "i", "s"]


def test_manifest(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        {"id": "a/one", "audio": "long.wav", "text": "So.", "seconds": 2.0},
        {"id": "two", "audio": "short.wav", "text": "much too long for it", "seconds": 0.5},
        {"id": "three", "audio": "short.wav", "text": "caf\u00e9", "seconds": 0.5},
        {"id": "four", "audio": "gone.wav", "text": "so", "seconds": 0.5},
        {"id": "../five", "audio": "short.wav", "text": "is", "seconds": 0.5},
    ]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    align(folder, manifest, "--output", tmp_path / "all.jsonl", status=1)
    assert [json.loads(line)["text"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == ["so", "is"]
    errors = capsys.readouterr().err.splitlines()
    short = re.escape(str(folder / "short.wav"))
    for error, expected in zip(
        errors,
        [
            rf"asr align: {short}: the text needs 21 frames \(tokens: 20, blanks between equal ones: 1\), .* have 12,",
            rf"asr align: {short}: the model lacks characters of the text: .*U\+00E9",
            rf"asr align: {folder}/gone\.wav: No such file",
            r"asr align: 3 of 5 utterances could not be aligned$",
        ],
        strict=True,
    ):
        assert re.match(expected, error), error
    align(folder, manifest, "--output", tmp_path / "grids", "--format", "textgrid", status=1)
    assert sorted(str(file.relative_to(tmp_path / "grids")) for file in (tmp_path / "grids").rglob("*.*")) == [
        "a/one.TextGrid",
        "five.TextGrid",
    ]


def test_two_utterances_never_share_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "manifest.jsonl"
    entry = {"audio": str(folder / "short.wav"), "text": "is", "seconds": 0.5}
    manifest.write_text("".join(json.dumps(entry | {"id": name}) + "\n" for name in ("x/a", "../x/a")))
    with pytest.raises(SystemExit):
        align(folder, manifest, "--output", tmp_path / "grids", "--format", "textgrid")
    assert "a.TextGrid: got two utterances for it, 'x/a' and '../x/a'; expected" in capsys.readouterr().err
    assert not (tmp_path / "grids").exists()
    align(folder, manifest, "--output", tmp_path / "all.ctm")
    assert [line.split()[0] for line in (tmp_path / "all.ctm").read_text().splitlines()] == ["x/a", "../x/a"]


def test_a_name_that_is_not_utf_8(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = tmp_path / os.fsdecode(b"caf\xe9.wav")
    audio.write_bytes((folder / "short.wav").read_bytes())
    align(folder, audio, "is")
    printed = capsys.readouterr().out
    assert printed.startswith("caf\\udce9 1 ")
    align(folder, audio, "is", "--output", tmp_path / "all.ctm")
    assert (tmp_path / "all.ctm").read_text() == printed


def test_wrong_use(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *arguments: object, status: int) -> None:
        with pytest.raises(SystemExit) as left:
            align(folder, *arguments)
        assert left.value.code == status
        assert re.search(message, capsys.readouterr().err)

    audio = folder / "long.wav"
    refused("and no TEXT, expected the text, or a manifest", audio, status=2)
    refused("expected a folder: srt has a file for each", folder / "a.jsonl", "--format", "srt", status=2)
    refused("--tokens: srt shows words only", audio, "a", "--format", "srt", "--tokens", status=2)
    refused(r"gone\.txt: No such file", audio, tmp_path / "gone.txt", status=1)
    refused(r"gone\.jsonl: No such file", tmp_path / "gone.jsonl", status=1)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    refused(r"latin\.txt: got byte 0xe9, expected UTF-8", audio, tmp_path / "latin.txt", status=1)
    align(folder, folder / "model" / "config.yaml", "a", status=1)
    assert "config.yaml: not readable as audio" in capsys.readouterr().err


def alignment(*words: tuple[str, float, float], seconds: float = 4.0) -> Alignment:
    units = tuple(Word(text, start, end, 0.5) for text, start, end in words)
    return Alignment(" ".join(word.text for word in units), units, units, seconds, -1.0)


def test_text_grid() -> None:
    """Intervals follow each other from 0 to the end, as Praat asks for; quotation marks are doubled."""
    text = formats.text_grid(alignment(('"a"', 0.0, 0.5), ("b", 0.5, 1.25), ("c", 2.0, 4.04)), with_tokens=True)
    assert text.count("xmax = 4.04\n") == 5  # of the file, of two tiers, of two last intervals
    tiers = text.split("    item [")[1:]
    assert [re.search(r'name = "(\w+)"', tier)[1] for tier in tiers] == ["words", "tokens"]  # type: ignore[index]
    found = re.findall(r'intervals \[(\d+)\]:\n +xmin = (\S+)\n +xmax = (\S+)\n +text = "(.*)"', tiers[0])
    assert found == [
        ("1", "0", "0.5", '""a""'),
        ("2", "0.5", "1.25", "b"),
        ("3", "1.25", "2", ""),
        ("4", "2", "4.04", "c"),
    ]
    assert "intervals: size = 4" in tiers[0]
    assert "intervals: size = 4" in tiers[1]


def test_ctm() -> None:
    text = formats.ctm(alignment(("well - known", 0.04, 0.2)), "my file", with_tokens=False)
    assert text == "my_file 1 0.040 0.160 well_-_known 0.5000\n"


def test_srt() -> None:
    """Cut at a pause, at 7 s, and at 84 characters; two lines of much the same length; no overlap."""
    words = [("one", 0.0, 0.4), ("two", 1.0, 1.4), ("three", 2.5, 3.0)]
    words += [(f"word{i}", 10 + i, 10.9 + i) for i in range(8)]
    words += [("x" * 30, 3601.5 + 0.1 * i, 3601.6 + 0.1 * i) for i in range(3)]
    assert formats.srt(alignment(*words, seconds=3602.0)) == (
        "1\n00:00:00,000 --> 00:00:01,900\none two\n\n"
        "2\n00:00:02,500 --> 00:00:03,500\nthree\n\n"
        "3\n00:00:10,000 --> 00:00:17,000\nword0 word1 word2 word3 word4 word5 word6\n\n"
        "4\n00:00:17,000 --> 00:00:18,400\nword7\n\n"
        f"5\n01:00:01,500 --> 01:00:01,700\n{'x' * 30}\n{'x' * 30}\n\n"
        f"6\n01:00:01,700 --> 01:00:02,000\n{'x' * 30}\n"
    )
