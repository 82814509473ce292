"""Alignments as files: Praat's TextGrid, NIST's CTM, SubRip's SRT, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from asr.decode.align import Alignment
from asr.types import Word

# How subtitles are cut: two lines of 42 characters and 7 s are what broadcasters allow for.
CUE_CHARACTERS = 84
LINE_CHARACTERS = 42
CUE_SECONDS = 7.0
PAUSE_SECONDS = 1.0  # a longer one ends a subtitle
LINGER_SECONDS = 0.5  # a subtitle stays that much after its last word, if the next one leaves the time


def text_grid(alignment: Alignment, *, with_tokens: bool) -> str:
    """Tier "words" and maybe "tokens", each from 0 to the end of the audio without gaps."""
    tiers = {"words": alignment.words} | ({"tokens": alignment.tokens} if with_tokens else {})
    end = max(alignment.seconds, alignment.tokens[-1].end_seconds)
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_number(end)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, words) in enumerate(tiers.items(), 1):
        intervals = _without_gaps(words, end)
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {_number(end)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for at, (start, stop, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{at}]:",
                f"            xmin = {_number(start)}",
                f"            xmax = {_number(stop)}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def ctm(alignment: Alignment, name: str, *, with_tokens: bool) -> str:
    """`NAME 1 START SECONDS WORD CONFIDENCE` for each word, or for each token."""
    name = "_".join(name.split())
    units = alignment.tokens if with_tokens else alignment.words
    lines = []
    for unit in units:
        text = "_".join(unit.text.split()) or "<space>"  # a field has no white space in it
        start, seconds = unit.start_seconds, unit.end_seconds - unit.start_seconds
        lines.append(f"{name} 1 {start:.3f} {seconds:.3f} {text} {unit.confidence:.4f}\n")
    return "".join(lines)


def srt(alignment: Alignment) -> str:
    """Subtitles: words that follow each other, cut at pauses and where one would be too long to read."""
    cues: list[list[Word]] = []
    for word in alignment.words:
        if cues and _fits([*cues[-1], word]):
            cues[-1].append(word)
        else:
            cues.append([word])
    starts = [cue[0].start_seconds for cue in cues]
    ends = [
        min(cue[-1].end_seconds + LINGER_SECONDS, following)
        for cue, following in zip(cues, [*starts[1:], max(alignment.seconds, cues[-1][-1].end_seconds)], strict=True)
    ]
    return "\n".join(
        f"{number}\n{_clock(start)} --> {_clock(end)}\n{_in_lines(cue)}\n"
        for number, (cue, start, end) in enumerate(zip(cues, starts, ends, strict=True), 1)
    )


def as_json(alignment: Alignment, audio: str, *, with_tokens: bool) -> str:
    """One object, in one line."""
    values = {"audio": audio, **asdict(alignment)}
    if not with_tokens:
        del values["tokens"]
    return json.dumps(values, ensure_ascii=False) + "\n"


def _without_gaps(words: Sequence[Word], end: float) -> list[tuple[float, float, str]]:
    intervals, position = [], 0.0
    for word in words:
        if word.start_seconds > position:
            intervals.append((position, word.start_seconds, ""))
        intervals.append((word.start_seconds, word.end_seconds, word.text))
        position = word.end_seconds
    if end > position:
        intervals.append((position, end, ""))
    return intervals


def _number(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _fits(cue: Sequence[Word]) -> bool:
    return (
        len(" ".join(word.text for word in cue)) <= CUE_CHARACTERS
        and cue[-1].end_seconds - cue[0].start_seconds <= CUE_SECONDS
        and cue[-1].start_seconds - cue[-2].end_seconds <= PAUSE_SECONDS
    )


def _in_lines(cue: Sequence[Word]) -> str:
    """One line, or two of nearly the same length."""
    texts = [word.text for word in cue]
    whole = " ".join(texts)
    if len(whole) <= LINE_CHARACTERS or len(texts) == 1:
        return whole
    halves = [(" ".join(texts[:i]), " ".join(texts[i:])) for i in range(1, len(texts))]
    return "\n".join(min(halves, key=lambda half: max(map(len, half))))


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
