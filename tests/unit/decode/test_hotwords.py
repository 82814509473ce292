"""The hotwords' automaton against a search of the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asr.decode._numba import DELIMITER, Hotwords, step_hotwords
from asr.decode.hotwords import build_hotwords

LETTERS = {" ": DELIMITER, "a": 1, "b": 2}
WORD = st.text(alphabet="ab", min_size=1, max_size=3)
PHRASE = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


def spelled(text: str) -> tuple[int, ...]:
    return tuple(LETTERS[character] for character in text)


def follow(automaton: Hotwords, text: str) -> tuple[float, float]:
    """What has been gained by the end of a text, and what is lent there."""
    node, gained = automaton.start, 0.0
    for character in spelled(text):
        node = step_hotwords(automaton.nodes, node, character)
        gained += float(automaton.nodes["gain"][node])
    return gained, float(automaton.nodes["credit"][node])


def occurrences(text: str, phrase: str) -> int:
    return sum(text.startswith(phrase, i) for i in range(len(text)))


@given(phrases=st.dictionaries(PHRASE, st.floats(-2, 5), min_size=1, max_size=5), words=st.lists(WORD, max_size=8))
def test_whole_words(phrases: dict[str, float], words: list[str]) -> None:
    automaton = build_hotwords({spelled(p): b for p, b in phrases.items()}, whole_words=True)
    text = "".join(word + " " for word in words)
    expected = sum(boost * occurrences(" " + text, f" {phrase} ") for phrase, boost in phrases.items())
    assert abs(follow(automaton, text)[0] - expected) < 1e-9


@given(phrases=st.dictionaries(PHRASE, st.floats(-2, 5), min_size=1, max_size=5), text=st.text("ab ", max_size=20))
def test_anywhere(phrases: dict[str, float], text: str) -> None:
    automaton = build_hotwords({spelled(p): b for p, b in phrases.items()}, whole_words=False)
    expected = sum(boost * occurrences(text, phrase) for phrase, boost in phrases.items())
    assert abs(follow(automaton, text)[0] - expected) < 1e-9


@given(phrases=st.dictionaries(PHRASE, st.floats(0, 5), min_size=1, max_size=5), text=st.text("ab ", max_size=20))
def test_what_is_lent_is_the_largest_share_of_a_phrase_begun(phrases: dict[str, float], text: str) -> None:
    automaton = build_hotwords({spelled(p): b for p, b in phrases.items()}, whole_words=False)
    lent = [
        boost * length / len(phrase)
        for phrase, boost in phrases.items()
        for length in range(1, len(phrase))
        if text.endswith(phrase[:length])
    ]
    assert abs(follow(automaton, text)[1] - max(lent, default=0.0)) < 1e-9


def test_a_phrase_that_breaks_off_has_gained_nothing() -> None:
    automaton = build_hotwords({spelled("ab ba"): 6.0}, whole_words=True)
    assert follow(automaton, "ab b") == (0.0, 4.0)  # 4 of the 5 characters and the end of the word
    assert follow(automaton, "ab ba ") == (6.0, 0.0)
    assert follow(automaton, "ab bb") == (0.0, 0.0)
    assert follow(automaton, "bab ") == (0.0, 0.0)


def test_no_hotwords() -> None:
    assert follow(build_hotwords({}, whole_words=True), "ab ") == (0.0, 0.0)
