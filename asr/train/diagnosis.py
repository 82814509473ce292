"""Says from what a training showed lately whether it learns, is on CTC's plateau, or has collapsed, and why.

A model that is trained with CTC first finds out that most frames are blank, and then says nothing else for a while: its
loss is what it costs to guess each token by how often it comes. That is normal, and looks at first sight like a model
whose weights have been destroyed. The two differ in loss, entropy and gradient, and in what came before.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any

# All losses are compared with that of guessing, `guessing_loss`. Measured on AN4 (rnn, 100 subwords): a plateau from
# step 50 to 150 with 0.88 to 1.0 of it, 0.004 to 0.06 frames a token, a gradient norm of 7 % of the first; then the
# loss falls to a third of it, and there is a frame for each token. The same model, and that of the tests' language of
# tones, with a hundred times the right learning rate: a loss of 2 to 70 times guessing's with an entropy of 0.004 to
# 0.1 of it; a healthy model has such a loss in its first steps only, with an entropy of 0.4 and more.
SILENT = 0.1  # frames a token that are not blank: fewer than one for every tenth token
SPEAKS = 0.3  # frames a token: a model that writes all tokens has at least 1.0
LEARNT = 0.8  # of guessing's loss, or less: the audio is made use of
LOST = 1.0  # of guessing's loss, or more, by a model that had learnt: no use is made of the audio any more
WRONG, CERTAIN = 2.0, 0.2  # loss of so much or more with an entropy of so much or less, both of guessing's loss
VANISHED = 1e-3  # of the gradient norm at the first look; a plateau's is 70 times that
# A training that has learnt nothing is stuck when a quarter of it is over, within these bounds, or a tenth, if that is
# more: AN4's plateau ends after 150 steps, large models on hundreds of hours may take thousands. Measured with the
# language of tones (540 steps; a healthy one learns within 90): with transcripts shuffled or audio zeroed it stays at
# 0.96 to 1.05 of guessing's loss; with a ten thousandth to a hundredth of the right learning rate at 3.2 to 6 times it.
SHORTEST_PATIENCE_STEPS, LONGEST_PATIENCE_STEPS = 500, 3000
FAR = 2.0  # of guessing's loss, or more, by a model that is not sure of anything: it is still about where it began
RECENT_STEPS, RECENT_LOOKS = 20, 3  # something has to hold so long before it is said; batches differ
REMEMBERED = 50  # looks of which the usual gradient norm is the median


def patience_steps(total_steps: int) -> int:
    """Steps in which a training of so many has to begin to learn, or it is stuck."""
    return max(SHORTEST_PATIENCE_STEPS, min(LONGEST_PATIENCE_STEPS, total_steps // 4), total_steps // 10)


def guessing_loss(targets: Iterable[Sequence[int]]) -> float:
    """Loss per token, in nats, of an output that is the same for every frame, at its best.

    Each frame is blank or, as often as tokens come, a token drawn by its frequency. So a token costs their entropy, and
    the text that its number of tokens, U, comes out right by chance: about 1 in sqrt(2 pi U). Neglects that CTC merges
    repeats; for 60 utterances of AN4 the best such output, found by optimisation, costs 1.7 % more.

    Args:
        targets: token ids of each utterance.
    """
    counts: Counter[int] = Counter()
    chance = 0.0
    for ids in targets:
        counts.update(ids)
        chance += 0.5 * math.log(max(1.0, 2 * math.pi * len(ids)))
    total = counts.total()
    entropy = -sum(count * math.log(count / total) for count in counts.values())
    return (entropy + chance) / total if total else float("nan")


@dataclass(frozen=True, slots=True)
class Window:
    """What the steps between two looks showed; nan where there was nothing to see.

    step: the last of them. blank_rate: share of frames whose best token is the blank. spoken: frames whose best token
    is another one, for each target token. entropy: mean of the frames' distributions, nats. loss: nats per target
    token; loss_by_length: the same by utterance length. gradient_norm: mean over steps, before clipping.
    """

    step: int
    blank_rate: float
    spoken: float
    entropy: float
    loss: float
    gradient_norm: float
    loss_by_length: tuple[float, ...] = ()


class Verdict(StrEnum):
    """How a training is doing."""

    BEGINNING = "beginning"
    PLATEAU = "plateau"
    STUCK = "stuck"
    LEARNING = "learning"
    COLLAPSE = "collapse"


class Diagnosis:
    """Takes in one look after the other and has a verdict.

    Args:
        guessing: `guessing_loss` of the training's transcripts.
        patience: `patience_steps` of its length.

    Attributes:
        verdict, before: the present one, and the one that it was before the last look.
        has_learnt: whether it ever made use of the audio.
        best_loss: of any look so far; nan before the first.
        first: the first look that saw a gradient; None before it.
        windows: the last looks.
    """

    def __init__(self, guessing: float, *, patience: int) -> None:
        self.guessing, self.patience = guessing, patience
        self.verdict = self.before = Verdict.BEGINNING
        self.has_learnt = False
        self.best_loss = float("nan")
        self.first: Window | None = None
        self.windows: deque[Window] = deque(maxlen=REMEMBERED)

    def add(self, window: Window) -> bool:
        """Take in a look; says whether the verdict has changed."""
        self.before = self.verdict
        if math.isnan(window.loss):  # nothing that was finite
            return False
        self.windows.append(window)
        self.best_loss = min(window.loss, self.best_loss)  # in this order: a number, if one of them is
        if self.first is None and not math.isnan(window.gradient_norm):
            self.first = window
        self.verdict = self._judge()
        return self.verdict != self.before

    def is_surely_wrong(self, window: Window) -> bool:
        """Whether the model was sure of its output, which the transcripts say is wrong."""
        return window.loss >= WRONG * self.guessing and window.entropy <= CERTAIN * self.guessing

    @property
    def first_norm(self) -> float:
        """Of the gradient at the first look; nan before it."""
        return float("nan") if self.first is None else self.first.gradient_norm

    def _recent(self) -> list[Window]:
        """The last looks, as many as a verdict needs; none if there are not so many."""
        windows = list(self.windows)
        begin = windows[-1].step - RECENT_STEPS
        count = max(RECENT_LOOKS, sum(window.step > begin for window in windows))
        return windows[-count:] if windows[0].step <= begin and len(windows) >= count else []

    def _judge(self) -> Verdict:
        recent = self._recent()
        if not recent:
            return self.verdict
        guessing = self.guessing
        if all(w.loss <= LEARNT * guessing and w.spoken >= SPEAKS for w in recent):
            self.has_learnt = True
            return Verdict.LEARNING
        silent = all(w.spoken < SILENT for w in recent)
        if all(self.is_surely_wrong(w) for w in recent):
            return Verdict.COLLAPSE
        if self.has_learnt:
            lost = silent or all(w.loss >= LOST * guessing for w in recent)
            return Verdict.COLLAPSE if lost else self.verdict
        if self.verdict in (Verdict.STUCK, Verdict.COLLAPSE):  # only learning ends those
            return self.verdict
        if silent and all(w.gradient_norm <= VANISHED * self.first_norm for w in recent):
            return Verdict.COLLAPSE
        if self.first is not None and recent[-1].step - self.first.step >= self.patience:
            return Verdict.STUCK
        return Verdict.PLATEAU if silent else self.verdict

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "verdict": self.verdict.value,
            "has_learnt": self.has_learnt,
            "best_loss": self.best_loss,
            "first": None if self.first is None else astuple(self.first),
            "windows": [astuple(window) for window in self.windows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if "first" not in state:  # of a former version: begin anew
            return
        self.verdict, self.has_learnt = Verdict(state["verdict"]), state["has_learnt"]
        self.best_loss = state["best_loss"]
        self.first = None if state["first"] is None else Window(*state["first"])
        self.windows = deque((Window(*row) for row in state["windows"]), maxlen=REMEMBERED)
