"""The watch looks once every few steps, logs what it saw, and speaks when the verdict changes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from asr.config.schema import Optim
from asr.data.corpus import Corpus
from asr.train.diagnosis import Verdict, guessing_loss
from asr.train.output_watch import OutputWatch
from tests.unit.train.test_guard import batch_of, task_of

LENGTHS = np.array([8000, 16000, 24000, 32000, 40000])


def encode(text: str) -> list[int]:
    return [" abc".index(letter) + 1 for letter in text]


class Utterances(SimpleNamespace):
    """What the watch asks a corpus for."""

    def __len__(self) -> int:
        return len(self.texts)


def make_watch(every_steps: int = 10, num_samples: np.ndarray = LENGTHS) -> OutputWatch:
    corpus = Utterances(num_samples=num_samples, sample_rate_hz=16000, texts=["a", "ab", "abc", "abc a", "abc ab"])
    return OutputWatch(cast(Corpus, corpus), encode, Optim(), every_steps=every_steps, total_steps=2000)


class Run:
    """A trainer and a task that show the watch what a test wants."""

    def __init__(self, watch: OutputWatch, *, pieces: int = 1, rank: int = 0, step: int = 0) -> None:
        self.watch, self.pieces = watch, pieces
        self.logged: list[tuple[int, dict[str, float]]] = []
        logger = SimpleNamespace(log_metrics=lambda figures, step: self.logged.append((step, figures)))
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
        self.trainer: Any = SimpleNamespace(
            global_step=step, loggers=[logger], optimizers=[optimizer], is_global_zero=rank == 0
        )
        self.task: Any = SimpleNamespace(device=torch.device("cpu"), measures=None)
        watch.on_train_start(self.trainer, self.task)

    def steps(self, count: int, *, blank: float, loss: float) -> None:
        """Steps on one utterance of 20 frames, 10 tokens and the second quarter's length.

        Args:
            count: how many.
            blank: probability of the blank in each frame.
            loss: per token.
        """
        log_probs = torch.full((1, 20, 5), (1 - blank) / 4).log()
        log_probs[..., 0] = np.log(blank)
        for _ in range(count):
            for piece in range(self.pieces):
                self.task.measures.add(
                    log_probs,
                    torch.tensor([20]),
                    torch.tensor([10 * loss]),
                    torch.tensor([20000]),
                    torch.tensor([10]),
                )
                if piece == self.pieces - 1:
                    self.task.measures.add_gradient_norm(torch.tensor(3.0))
                    self.trainer.global_step += 1
                self.watch.on_train_batch_end(self.trainer, self.task, None, cast(Any, None), 0)


@pytest.mark.parametrize("pieces", [1, 3])
def test_it_logs_each_look_once(pieces: int) -> None:
    run = Run(make_watch(), pieces=pieces)
    run.steps(25, blank=0.9, loss=2.0)
    assert [step for step, _ in run.logged] == [9, 19]
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.025))
    for _, figures in run.logged:
        assert figures == pytest.approx(
            {
                "guard/blank_rate": 1.0,
                "guard/spoken_per_token": 0.0,
                "guard/entropy": entropy,
                "guard/gradient_norm": 3.0,
                "guard/loss": 2.0,
                "guard/loss_to_1.5s": 2.0,  # and no other: their buckets are empty
            },
            rel=1e-6,
        )


def test_it_does_not_look_where_a_resumed_run_begins() -> None:
    run = Run(make_watch(), pieces=2, step=20)
    run.task.measures.add_gradient_norm(torch.tensor(1.0))
    run.watch.on_train_batch_end(run.trainer, run.task, None, cast(Any, None), 0)  # the first piece of step 21
    assert run.logged == []


def test_it_says_what_is_new_and_only_then(capsys: pytest.CaptureFixture[str]) -> None:
    watch = make_watch(every_steps=5)
    guessing = guessing_loss([[2], [2, 3], [2, 3, 4], [2, 3, 4, 1, 2], [2, 3, 4, 1, 2, 3]])
    assert watch.diagnosis.guessing == pytest.approx(guessing)
    run = Run(watch)
    run.steps(100, blank=0.95, loss=guessing)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "normal plateau" in lines[0]
    run.steps(100, blank=0.1, loss=0.2 * guessing)
    assert "the plateau is over" in capsys.readouterr().err
    run.steps(100, blank=0.95, loss=guessing)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "COLLAPSE" in lines[0]
    assert "optim.learning_rate (now 0.5)" in lines[0]


def test_other_ranks_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(make_watch(), rank=1)
    run.steps(100, blank=0.95, loss=1.5)
    assert run.watch.diagnosis.verdict == Verdict.PLATEAU
    assert capsys.readouterr().err == ""


def test_a_resumed_watch_does_not_say_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(make_watch())
    run.steps(100, blank=0.95, loss=1.5)
    watch = make_watch()
    watch.load_state_dict(run.watch.state_dict())
    capsys.readouterr()
    Run(watch, step=100).steps(100, blank=0.95, loss=1.5)
    assert capsys.readouterr().err == ""


def test_utterances_of_one_length_are_one_bucket() -> None:
    watch = make_watch(num_samples=np.full(5, 8000))
    assert watch.names == ["guard/loss_to_0.5s", "guard/loss_above_0.5s"]
    run = Run(make_watch(num_samples=np.full(5, 20000)))  # 1.25 s
    run.steps(10, blank=0.9, loss=2.0)
    assert [name for name in run.logged[0][1] if "loss_" in name] == ["guard/loss_above_1.2s"]


def test_a_real_training_that_cannot_learn(capsys: pytest.CaptureFixture[str]) -> None:
    """Of noise, that says nothing about its transcripts."""
    optim = Optim(learning_rate=1e-2)
    task = task_of(optim)
    optimizer = task.configure_optimizers()
    corpus = Utterances(num_samples=LENGTHS, sample_rate_hz=16000, texts=["abc", "ba"])
    run = Run(OutputWatch(cast(Corpus, corpus), encode, optim, every_steps=10, total_steps=600))
    task.measures = run.task.measures
    for number in range(1, 516):
        batch = replace(batch_of(number), audio_lengths=torch.tensor([2400, 2400])).part(slice(None))
        targets = torch.randint(1, 4, (2, 3), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        task.training_step(replace(batch, targets=targets), 0).backward()
        task.configure_gradient_clipping(optimizer)
        optimizer.step()
        run.trainer.global_step = number
        run.watch.on_train_batch_end(run.trainer, run.task, None, batch, 0)
    assert run.watch.diagnosis.verdict == Verdict.STUCK
    said = capsys.readouterr().err
    assert said.count("STUCK") == 1
    assert "step 510: STUCK" in said
    assert "has not fallen well below guessing's" in said
