"""Texts without spaces: where words end, and what is above blind."""

import pytest
import torch

from asr.errors import ConfigError
from asr.sequence.settings import Case
from asr.sequence.tasks.word_boundaries import Options, WordBoundaries, f1
from asr.sequence.trainer import build_model


def test_texts_are_words_and_ends_are_where_they_end() -> None:
    task = WordBoundaries(Options(num_words=5, length=40))
    lexicon = {tuple(word.tolist()) for word in task.lexicon}
    assert len(lexicon) == 5
    examples = next(iter(task.batches(6, torch.Generator().manual_seed(0))))
    assert examples.inputs.shape == (6, 40)
    for letters, targets in zip(examples.inputs, examples.targets, strict=True):
        assert torch.equal(targets[:-1, 0], letters[1:])
        word: list[int] = []
        for letter, end in zip(letters.tolist(), targets[:, 1].tolist(), strict=True):
            word.append(letter)
            if end:
                assert tuple(word) in lexicon
                word = []
        assert len(word) < 8


def test_f1() -> None:
    true = torch.tensor([1, 0, 1, 0, 1]).bool()
    assert f1(true, true) == 1.0
    assert f1(torch.tensor([1, 1, 0, 0, 0]).bool(), true) == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert f1(torch.zeros(5).bool(), true) == 0.0


def test_stacks_that_see_the_answer_are_refused() -> None:
    case = Case.model_validate({"stack": {"name": "gru", "hidden_size": 4}})
    task = WordBoundaries(Options())
    with pytest.raises(ConfigError, match="would see the letters"):
        task.initialize(build_model(task, case))
