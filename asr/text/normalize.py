"""One spelling for each word: Unicode form, case, punctuation, white space.

Numbers stay as they are written: how "1984" is spoken depends on what it means, so transcripts should spell numbers
out; digits that are left become tokens of their own.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\uff07`\u00b4", "'"))
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")
_DOTTED_SMALL_I = re.compile("i\u0307+")  # what lower() makes of a dotted capital I
_JOINERS = "\u200c\u200d"
_OUTER_JOINER = re.compile(f"(?<![^\\s{_JOINERS}])[{_JOINERS}]+|[{_JOINERS}]+(?![^\\s{_JOINERS}])")
# Languages whose spelling has zero-width joiners and non-joiners inside words (Unicode Standard, sections 9.2 and 12).
_SPELLED_WITH_JOINERS = {
    "fa", "ps", "ckb", "ur", "ug",  # Arabic script
    "hi", "mr", "ne", "bn", "as", "gu", "pa", "or", "ta", "te", "kn", "ml", "si", "km", "my",  # Brahmic scripts
}  # fmt: skip
_DOTTED_I = {"tr", "az"}  # languages in which I is the capital of a dotless i


def normalize(
    text: str,
    *,
    case: Literal["lower", "upper", "keep"] = "lower",
    punctuation: Literal["remove", "keep"] = "remove",
    language: str = "en",
) -> str:
    """Bring a transcript into the form that the model is trained on and scored against; idempotent.

    Args:
        text: any Unicode text.
        case: what all letters become.
        punctuation: remove replaces punctuation and symbols by spaces, but keeps apostrophes inside words.
        language: BCP 47 tag; Turkish and Azerbaijani have their own i, Persian and the languages of India spell with
            zero-width joiners, which are kept inside their words.

    Returns:
        NFC text without control, format and bidirectional characters, words parted by single spaces.
    """
    # What is not seen goes first: between a letter and its accent it would keep the two from being composed.
    joiners = _JOINERS if language.split("-")[0].lower() in _SPELLED_WITH_JOINERS else ""
    text = "".join(_visible(character, joiners) for character in text)
    text = _fold_case(unicodedata.normalize("NFC", text), case, language)
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
    if punctuation == "remove":
        text = "".join(" " if _is_punctuation(character) else character for character in text)
        text = _OUTER_APOSTROPHE.sub(" ", text)
    if joiners:
        text = _OUTER_JOINER.sub("", text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def _fold_case(text: str, case: str, language: str) -> str:
    dotted = language.split("-")[0].lower() in _DOTTED_I
    if case == "lower":
        if dotted:
            text = text.replace("I", "\u0131").replace("\u0130", "i")
        return _DOTTED_SMALL_I.sub("i", text.lower())
    if case == "upper":
        if dotted:
            text = text.replace("i", "\u0130")
        return text.upper()
    return text


def _visible(character: str, joiners: str) -> str:
    if character in joiners:
        return character
    category = unicodedata.category(character)
    if category[0] == "Z" or character.isspace():
        return " "
    # Control, format (bidirectional marks, other languages' joiners), private use, unassigned.
    return "" if category[0] == "C" else character


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS" and character != "'"
