"""The character model: windows, what is scored, the chance level, and stacks that would see the answer."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from asr.errors import ConfigError, DataError
from asr.sequence.settings import Case, Data
from asr.sequence.tasks.char_lm import CharacterModel, Options, build, cut
from asr.sequence.trainer import build_model
from tests.support.shared_data import shared_data

TEXT = "abcd efgh. " * 400


def test_each_character_asks_for_the_next_one_and_splits_do_not_overlap() -> None:
    task = CharacterModel(*cut(TEXT), Options(length=16))
    examples = next(iter(task.batches(8, torch.Generator().manual_seed(0))))
    assert examples.inputs.shape == examples.targets.shape == (8, 16)
    assert torch.equal(examples.inputs[:, 1:], examples.targets[:, :-1])
    alphabet = sorted(set(TEXT))
    for row in examples.inputs:
        assert "".join(alphabet[i] for i in row) in TEXT
    pieces = [task.train, task.held_out["validation"], task.held_out["test"]]
    assert "".join(alphabet[i] for i in torch.cat(pieces)) == TEXT
    assert [len(piece) for piece in pieces] == [3740, 220, 440]


def test_every_scored_character_is_scored_once_and_has_context() -> None:
    task = CharacterModel(*cut(TEXT), Options(length=16, max_evaluated=1000))
    outputs_of = [torch.zeros(*e.targets.shape, task.output_size) for e in task.evaluation("test")]
    scores = [task.score(o, e) for o, e in zip(outputs_of, task.evaluation("test"), strict=True)]
    total, count = (float(sum(part)) for part in zip(*scores, strict=True))
    windows = (440 - 17) // 12 + 1  # every 12 characters, 16 and the next one long
    assert count == 12 * windows
    assert total / count == pytest.approx(math.log2(task.output_size))


def test_chance_is_what_the_frequencies_of_characters_cost() -> None:
    task = CharacterModel(*cut(TEXT), Options(length=16))
    train, test = Counter(TEXT[:3740]), TEXT[-440:]
    expected = -sum(math.log2(train[c] / 3740) for c in test) / 440
    assert task.chance == pytest.approx(expected, rel=1e-6)


def test_stacks_that_see_the_answer_are_refused() -> None:
    task = CharacterModel(*cut(TEXT), Options(length=16))
    for options in ({"bidirectional": True}, {"bidirectional": False, "lookahead_frames": 2}):
        case = Case.model_validate({"stack": {"name": "gru", "num_layers": 1, "hidden_size": 4, **options}})
        with pytest.raises(ConfigError, match="would see what it is asked for"):
            task.initialize(build_model(task, case))


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="got a part of 0 characters, expected at least 18"):
        CharacterModel(*cut("abc"), Options(length=16))


def test_the_penn_treebank_keeps_its_parts_and_its_characters(tmp_path: Path) -> None:
    options = Options(text="penn_treebank", length=16)
    with pytest.raises(ConfigError, match=r"expected a folder that holds ptb.char.train.txt"):
        build(options, Data(root=tmp_path))
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.char.{part}.txt").write_text(" ".join(f"{part[0]}_<unk>" * 40) + "\n", encoding="utf-8")
    task = build(options, Data(root=tmp_path))
    assert task.input_size == len(set("tv_<unk>"))
    assert [len(part) for part in (task.train, *task.held_out.values())] == [280] * 3
    (tmp_path / "ptb.char.test.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"ptb.char.test.txt"):
        build(options, Data(root=tmp_path))


def test_the_real_text_has_65_characters() -> None:
    text = (shared_data("text") / "tinyshakespeare.txt").read_text()
    assert CharacterModel(*cut(text), Options()).input_size == 65
