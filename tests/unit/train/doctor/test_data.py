"""Each verdict on the data, with data that is broken here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from asr import model
from asr.config import Config
from asr.data.corpus import Corpus
from asr.text.tokenizer import build_tokenizer
from asr.train.doctor import data
from asr.train.doctor.report import Line, Verdict
from tests.support.damage import damage
from tests.support.doctor import split, tiny_config

SUNG = {f"u{i}": ("ab c" if i % 2 else "cab", i) for i in range(8)}


def folders(root: Path) -> dict[str, Path]:
    for name in ("train", "validation", "test"):
        split(root / name, {f"{name}-{key}": value for key, value in SUNG.items()})
    return {name: root / name for name in ("train", "validation", "test")}


def test_whole_shards(tmp_path: Path) -> None:
    readers, line = data.open_shards(tiny_config(), folders(tmp_path))
    assert (line.verdict, list(readers)) == (Verdict.OK, ["train", "validation", "test"])
    assert "train 8 utterances" in line.message


def test_every_split_that_is_not_whole_is_named(tmp_path: Path) -> None:
    places = folders(tmp_path)
    (places["train"] / "shard-000000.tar").unlink()
    with (places["test"] / "shard-000000.tar").open("r+b") as tar:
        tar.truncate(5000)
    readers, line = data.open_shards(tiny_config(), places)
    assert (line.verdict, list(readers)) == (Verdict.ERROR, ["validation"])
    assert len(line.details) == 2
    assert "train/shard-000000.tar: got 0 bytes" in line.details[0]
    assert "test/shard-000000.tar: got 5000 bytes" in line.details[1]
    assert "recipes/tones/train.py" in line.fix


@pytest.mark.parametrize(("damaged", "verdict"), [(0, Verdict.OK), (1, Verdict.WARNING), (3, Verdict.ERROR)])
def test_damaged_audio_is_named(tmp_path: Path, damaged: int, verdict: Verdict) -> None:
    """Of 16 recordings; the index cannot know of it."""
    reader = split(tmp_path / "train", {f"u{i:02d}": ("abc", i) for i in range(16)})
    for i in range(damaged):
        damage(tmp_path / "train", f"u{i:02d}")
    line = data.check_audio({"train": reader}, every=False)
    assert line.verdict is verdict
    assert [detail.split(":")[0] for detail in line.details] == [f"train u{i:02d}" for i in range(damaged)]


def test_some_are_decoded_unless_all_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DECODED", 3)
    reader = split(tmp_path / "train", SUNG)
    damage(tmp_path / "train", "u1")  # of u0, u3 and u7 none
    line = data.check_audio({"train": reader}, every=False)
    assert line.verdict is Verdict.OK
    assert "3 utterances decoded of 8; --all-audio decodes" in line.message
    line = data.check_audio({"train": reader}, every=True)
    assert (line.verdict, len(line.details)) == (Verdict.ERROR, 1)


def test_rates(tmp_path: Path) -> None:
    right, low = split(tmp_path / "right", SUNG), split(tmp_path / "low", SUNG, source_rate_hz=8000)
    line = data.check_rates(tiny_config(), {"right": right})
    assert (line.verdict, "right: 8 at 16000 Hz" in line.message) == (Verdict.OK, True)
    line = data.check_rates(tiny_config(), {"right": right, "low": low})
    assert line.verdict is Verdict.WARNING
    assert line.details == ("low: 8 at 8000 Hz", "right: 8 at 16000 Hz")
    assert "data.sample_rate_hz=8000" in line.fix
    line = data.check_rates(tiny_config(data={"sample_rate_hz": 8000}), {"right": right})
    assert (line.verdict, line.details) == (Verdict.ERROR, (f"{tmp_path}/right: 16000 Hz",))
    (tmp_path / "right" / "manifest.jsonl").unlink()  # as make_shards leaves it
    line = data.check_rates(tiny_config(), {"right": right})
    assert "right: 8 at 16000 Hz" in line.message
    (tmp_path / "right" / "plan.jsonl").unlink()
    line = data.check_rates(tiny_config(), {"right": right})
    assert (line.verdict, "are not here" in line.message) == (Verdict.OK, True)


def utterances(config: Config, folder: Path, sung: Mapping[str, tuple[str, int]], **options: Any) -> Line:
    corpus = Corpus([split(folder, sung, **options)], config.data.sample_rate_hz)
    tokenizer = build_tokenizer(config.text, corpus.texts)
    total = len(corpus)
    line = data.check_utterances(config, corpus, tokenizer, model.build(config, tokenizer.num_tokens))
    assert total - len(corpus) == len(line.details)
    return line


def test_what_ctc_cannot_use(tmp_path: Path) -> None:
    """1 s holds 98 windows of 25 ms, every 10 ms, so 49 frames of 20 ms; "aa" needs three of them."""
    many = {f"u{i:02d}": ("abc", i) for i in range(24)}
    assert utterances(tiny_config(), tmp_path / "a", many, seconds=1.0).verdict is Verdict.OK
    line = utterances(tiny_config(), tmp_path / "b", many | {"long": ("a" * 26, 0), "none": ("", 0)}, seconds=1.0)
    assert line.verdict is Verdict.WARNING
    assert line.figures == {"infeasible": 1, "empty_text": 1}
    assert line.details[0] == "b long: infeasible: CTC needs 51 frames for 26 tokens, 1.00 s give 49"
    assert line.details[1].startswith("b none: empty_text")
    assert "text.tokenizer=unigram" in line.fix
    assert utterances(tiny_config(), tmp_path / "c", many | {"fits": ("a" * 25, 0)}, seconds=1.0).verdict is Verdict.OK


def test_characters_that_a_resumed_run_lacks(tmp_path: Path) -> None:
    """It keeps its tokens, whatever the transcripts have become."""
    config = tiny_config()
    corpus = Corpus([split(tmp_path / "train", SUNG | {"new": ("abq", 9)})], config.data.sample_rate_hz)
    tokenizer = build_tokenizer(config.text, ["abc"])
    line = data.check_utterances(config, corpus, tokenizer, model.build(config, tokenizer.num_tokens))
    assert line.figures == {"unknown_characters": 1}
    assert line.details[0].startswith("train new: unknown_characters: 'q' (U+0071")
    assert "spell these out in the transcripts" in line.fix


@pytest.mark.parametrize(
    ("section", "key"), [({"max_seconds": 0.9}, "data.max_seconds"), ({"min_seconds": 1.1}, "data.min_seconds")]
)
def test_a_setting_that_leaves_out_all_is_an_error(tmp_path: Path, section: dict[str, float], key: str) -> None:
    config = tiny_config(data={"batch_seconds": 6.0, **section})
    line = utterances(config, tmp_path / "train", SUNG, seconds=1.0)
    assert (line.verdict, len(line.details), key in line.fix) == (Verdict.ERROR, 8, True)


def test_unknown_characters_have_counts_and_lines(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tiny_config().text, ["abc"])
    right = split(tmp_path / "validation", SUNG)
    assert data.check_characters(tokenizer, {"validation": right}).verdict is Verdict.OK
    wrong = split(tmp_path / "test", {"z": ("abc", 1), "y": ("Qaq", 2), "x": ("q", 3)})
    line = data.check_characters(tokenizer, {"validation": right, "test": wrong})
    assert line.verdict is Verdict.WARNING
    # Shards go by id, so that x is met before y; it stands in the manifest's third line.
    (detail,) = line.details
    assert detail.startswith("'q' (U+0071, LATIN SMALL LETTER Q): 3 times")
    assert detail.endswith(f"first in {tmp_path}/test/manifest.jsonl:3 (x)")
    (tmp_path / "test" / "manifest.jsonl").unlink()  # the plan's first line is the plan's own, then it goes by id
    (detail,) = data.check_characters(tokenizer, {"test": wrong}).details
    assert detail.endswith(f"first in {tmp_path}/test/plan.jsonl:2 (x)")
    (tmp_path / "test" / "plan.jsonl").unlink()
    (detail,) = data.check_characters(tokenizer, {"test": wrong}).details
    assert detail.endswith("first in test x")


def test_rare_characters(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tiny_config().text, ["abcq "])
    often = split(tmp_path / "often", {f"u{i}": ("abc", i) for i in range(data.RARE)})
    assert data.check_rare_characters(tokenizer, {"often": often}).verdict is Verdict.OK
    seldom = split(tmp_path / "seldom", {"slip": ("abq", 0)})
    line = data.check_rare_characters(tokenizer, {"often": often, "seldom": seldom})
    assert line.verdict is Verdict.WARNING
    (detail,) = line.details  # "a" and "b" stand there often enough
    assert detail.startswith("'q' (U+0071, LATIN SMALL LETTER Q): 1 times, first in")
