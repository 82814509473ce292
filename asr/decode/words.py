"""From tokens with frames to words with seconds and confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asr.decode.decoder import TokenPath
from asr.text.tokenizer import Tokenizer
from asr.types import Word


def words_of(path: TokenPath, tokenizer: Tokenizer, frame_seconds: float) -> tuple[Word, ...]:
    """Group a path's tokens into words.

    A word begins with its first token's first frame and ends with its last token's last frame. Its confidence is the
    geometric mean of its tokens' probabilities, each at the token's best frame.

    Args:
        path: tokens with frames.
        tokenizer: knows which tokens begin a word.
        frame_seconds: time between two frames.
    """
    words = []
    for group in token_groups(path.ids, tokenizer):
        text = tokenizer.decode([path.ids[i] for i in group]).strip()
        if text:
            confidence = math.exp(sum(path.log_probs[i] for i in group) / len(group))
            start, end = path.frames[group[0]] * frame_seconds, path.ends[group[-1]] * frame_seconds
            words.append(Word(text, round(start, 3), round(end, 3), round(min(1.0, confidence), 4)))
    return tuple(words)


def token_groups(ids: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Positions of the tokens that make up each word, without those that only part words."""
    groups: list[list[int]] = []
    for position, token in enumerate(ids):
        if tokenizer.is_space(token):
            groups.append([])
        elif not groups or tokenizer.starts_word(token):
            groups.append([position])
        else:
            groups[-1].append(position)
    return [group for group in groups if group]
