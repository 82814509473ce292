"""What a verdict of `Diagnosis` means, why it was come to, and what to do, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from asr.config.schema import Optim
from asr.train.diagnosis import FAR, SILENT, VANISHED, Diagnosis, Verdict, Window

EXPLODED = 10.0  # times the gradient norm that was usual while the loss still fell
PAGE = "docs/training-guard.md"


def explain(diagnosis: Diagnosis, *, learning_rate: float, optim: Optim) -> str:
    """One line about a verdict that is new; empty where there is nothing that a user has to know.

    Args:
        diagnosis: after its last look.
        learning_rate: of the last step.
        optim: the settings.
    """
    now, verdict, before = diagnosis.windows[-1], diagnosis.verdict, diagnosis.before
    loss = f"the loss is {now.loss:.3g} a token, guessing tokens by how often they come costs {diagnosis.guessing:.3g}"
    if verdict == Verdict.PLATEAU:
        said = (
            f"{_output(now)}. This is CTC's normal plateau, not a collapse: {loss}; entropy {now.entropy:.2g} nats; "
            f"gradients still arrive (norm {now.gradient_norm:.3g}). Nothing to do"
        )
    elif verdict == Verdict.STUCK:
        said = f"STUCK: {_output(now)}; {loss}. {_why_stuck(diagnosis, optim)}"
    elif verdict == Verdict.COLLAPSE:
        reason = _reason(diagnosis, learning_rate=learning_rate, gradient_clip=optim.gradient_clip)
        said = f"COLLAPSE: {_output(now)}; {loss}. {reason}"
    elif before == Verdict.COLLAPSE:
        said = f"it learns again: {loss}; {_output(now)}"
    elif before in (Verdict.PLATEAU, Verdict.STUCK):
        said = f"the plateau is over: {loss}; {_output(now)}"
    else:
        return ""
    return f"step {now.step}: {said}. See {PAGE}"


def _output(window: Window) -> str:
    if window.spoken < SILENT:
        return f"the output is blanks only ({100 * window.blank_rate:.1f} % of frames)"
    return f"the output has {window.spoken:.2f} frames a token that are not blank"


def _why_stuck(diagnosis: Diagnosis, optim: Optim) -> str:
    """Why it has not begun to learn, as far as can be seen, and what to do."""
    now, first = diagnosis.windows[-1], diagnosis.first
    assert first is not None
    began = (
        f"In {now.step - first.step} steps it has learnt nothing from the audio: the loss began at {first.loss:.3g} and"
    )
    rate = f"(now optim.learning_rate={optim.learning_rate:g})"
    if now.loss >= FAR * diagnosis.guessing and now.entropy >= first.entropy / 2:
        return (
            f"{began} is still far above guessing's, with an output about as even as then (entropy {now.entropy:.2g} "
            f"nats): steps are too short. Raise the learning rate tenfold {rate}, or lower optim.warmup_steps"
        )
    return (
        f"{began} has not fallen well below guessing's, for longer than CTC's plateau usually lasts. Check that "
        "transcripts belong to their audio and that it is not silent (asr doctor, asr ledger, asr show augment); begin "
        "with short utterances (data.sorta_grad=true); try a third of the learning rate, or three times as much "
        f"{rate}"
    )


def _reason(diagnosis: Diagnosis, *, learning_rate: float, gradient_clip: float) -> str:
    """Why it has collapsed, and what to do."""
    windows = list(diagnosis.windows)
    now = windows[-1]
    learnt = f"It had learnt (loss {diagnosis.best_loss:.3g})" if diagnosis.has_learnt else "It has not learnt yet"
    sure = f"; it is sure of what is wrong (entropy {now.entropy:.2g} nats)" if diagnosis.is_surely_wrong(now) else ""
    best = min(range(len(windows)), key=lambda index: windows[index].loss)
    usual = _of(median, [window.gradient_norm for window in windows[: best + 1]])
    peak = _of(max, [window.gradient_norm for window in windows[best:]])
    exploded = peak >= EXPLODED * usual
    if not exploded and now.gradient_norm <= VANISHED * diagnosis.first_norm:
        return (
            f"The gradient has vanished (norm {now.gradient_norm:.2g}, at first {diagnosis.first_norm:.3g}), so no "
            f"step will change this. Begin anew with a lower optim.learning_rate (now {learning_rate:.2g})"
        )
    if exploded:
        cause = f"the gradient norm has jumped from {usual:.3g} to {peak:.3g}: the learning rate is too high"
    elif sure:
        cause = f"the gradient norm has not jumped ({usual:.3g}, then {peak:.3g}): the learning rate is far too high"
    else:
        cause = f"the gradient norm has not jumped ({usual:.3g}, then {peak:.3g}); the learning rate may be too high"
    clip = "" if gradient_clip else ", set optim.gradient_clip, which is off"
    return (
        f"{learnt}{sure}; {cause}. Lower optim.learning_rate (now {learning_rate:.2g}), raise optim.warmup_steps"
        f"{clip}; then go on from a checkpoint of before, or begin anew. If that does not help, check the transcripts "
        "(asr doctor)"
    )


def _of(function: Callable[[list[float]], float], values: list[float]) -> float:
    """`function` of those values that are numbers; nan of none."""
    numbers = [value for value in values if not math.isnan(value)]
    return function(numbers) if numbers else float("nan")
