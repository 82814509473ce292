"""Text to token ids and back. Id 0 is CTC's blank; it stands in no text."""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from asr.config.schema import Text
from asr.errors import CheckpointError, ConfigError, DataError
from asr.text.normalize import normalize

SPACE = " "


class Tokenizer(ABC):
    """An inventory of pieces and how text is cut into them.

    Attributes:
        pieces: piece of each id; `pieces[0]` is the blank's name.
        policy: how a text is normalised before it is cut.
    """

    pieces: tuple[str, ...]
    policy: Text

    @property
    def num_tokens(self) -> int:
        """V, the blank included."""
        return len(self.pieces)

    def normalize(self, text: str) -> str:
        """The text in the form that the tokens spell."""
        policy = self.policy
        return normalize(text, case=policy.case, punctuation=policy.punctuation, language=policy.language)

    def encode(self, text: str) -> list[int]:
        """Normalise and cut a text: ids in 1..V-1.

        Raises:
            DataError: a character is not in the inventory.
        """
        return self._encode(self.normalize(text))

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids spell."""

    @property
    def characters(self) -> frozenset[str]:
        """The characters that texts may hold, the space included."""
        return frozenset(character for piece in self.pieces[1:] for character in piece) | {SPACE}

    def is_space(self, token: int) -> bool:
        """Whether a token only parts words."""
        return self.pieces[token] == SPACE

    def starts_word(self, token: int) -> bool:
        """Whether a token begins a word by itself, without a space before it."""
        return False

    def to_json(self) -> str:
        """Everything about this tokenizer, for a checkpoint."""
        return json.dumps({"policy": self.policy.model_dump(), **self._data()}, ensure_ascii=False)

    @abstractmethod
    def _data(self) -> dict[str, Any]: ...


class CharacterTokenizer(Tokenizer):
    """One token for each character, the space included (Deep Speech 2, section 3.1)."""

    def __init__(self, characters: Iterable[str], policy: Text) -> None:
        self.pieces = ("<blank>", *characters)
        self.policy = policy
        self._ids = {piece: i for i, piece in enumerate(self.pieces) if i}

    @classmethod
    def build(cls, texts: Iterable[str], policy: Text) -> CharacterTokenizer:
        """Take the characters of normalised `texts`, in Unicode order."""
        return cls(sorted({character for text in texts for character in text} | {SPACE}), policy)

    def _encode(self, text: str) -> list[int]:
        return [self._id(character, text) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("".join(self.pieces[i] for i in ids).split())

    def _data(self) -> dict[str, Any]:
        return {"pieces": self.pieces[1:]}

    def _id(self, piece: str, text: str) -> int:
        try:
            return self._ids[piece]
        except KeyError:
            raise DataError(f"{_describe(piece)} is not among the model's characters; in the text {text!r}") from None


class BigramTokenizer(CharacterTokenizer):
    """Non-overlapping pairs of characters, word by word from the left; an odd last character stands alone.

    Deep Speech 2, section 3.6: "the cat sat" is th, e, space, ca, t, space, sa, t. Pairs that training never saw are
    spelled by their characters, which are always there.
    """

    @classmethod
    def build(cls, texts: Iterable[str], policy: Text) -> BigramTokenizer:
        """Take the characters and pairs of normalised `texts`."""
        texts = list(texts)
        characters = {character for text in texts for character in text} | {SPACE}
        pairs = {pair for text in texts for word in text.split() for pair in _pairs(word)} - characters
        return cls([*sorted(characters), *sorted(pairs)], policy)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, word in enumerate(text.split()):
            if position:
                ids.append(self._id(SPACE, text))
            for pair in _pairs(word):
                known = pair in self._ids
                ids += [self._ids[pair]] if known else [self._id(character, text) for character in pair]
        return ids


def _pairs(word: str) -> list[str]:
    return [word[i : i + 2] for i in range(0, len(word), 2)]


class SentencePieceTokenizer(Tokenizer):
    """Subwords found by sentencepiece (Kudo and Richardson 2018), by byte pairs or a unigram language model.

    Args:
        model: a serialised sentencepiece model. Its piece i is our token i + 1; its unknown piece is never used.
    """

    WORD_MARK = "\u2581"  # sentencepiece's own sign for the space before a word

    def __init__(self, model: bytes, policy: Text) -> None:
        from sentencepiece import SentencePieceProcessor

        self.policy = policy
        self.model = model
        self.processor = SentencePieceProcessor(model_proto=model)
        size = self.processor.get_piece_size()
        self.pieces = ("<blank>", *(self.processor.id_to_piece(i) for i in range(size)))

    @classmethod
    def build(cls, texts: Iterable[str], policy: Text) -> SentencePieceTokenizer:
        """Train on normalised `texts`, in memory, on one thread: the same texts give the same model.

        Raises:
            ConfigError: the texts do not allow for `text.vocabulary_size` pieces.
        """
        from sentencepiece import SentencePieceTrainer

        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type=policy.tokenizer,
                vocab_size=policy.vocabulary_size,
                character_coverage=1.0,
                normalization_rule_name="identity",  # texts are normalised already
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                max_sentence_length=1 << 20,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = re.sub(r"^.*?\)\s*\[.*?\]\s*", "", str(error).strip().splitlines()[-1])
            raise ConfigError(
                f"text.vocabulary_size: got {policy.vocabulary_size}, which the training transcripts do not allow for "
                f"text.tokenizer={policy.tokenizer}: {reason}"
            ) from error
        return cls(model.getvalue(), policy)

    def _encode(self, text: str) -> list[int]:
        ids = self.processor.encode(text)
        unknown = self.processor.unk_id()
        if unknown in ids:
            known = self.characters
            strange = next((character for character in text if character not in known), text)
            raise DataError(f"{_describe(strange)} is not among the model's characters; in the text {text!r}")
        return [i + 1 for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.processor.decode([i - 1 for i in ids]).split())

    @property
    def characters(self) -> frozenset[str]:
        unknown = self.processor.unk_id() + 1  # its name, <unk>, spells nothing
        pieces = (piece for i, piece in enumerate(self.pieces) if i not in (0, unknown))
        return frozenset(character for piece in pieces for character in piece) - {self.WORD_MARK} | {SPACE}

    def is_space(self, token: int) -> bool:
        return self.pieces[token] == self.WORD_MARK

    def starts_word(self, token: int) -> bool:
        return self.pieces[token].startswith(self.WORD_MARK)

    def _data(self) -> dict[str, Any]:
        return {"model": base64.b64encode(self.model).decode()}


_BY_CHARACTERS: dict[str, type[CharacterTokenizer]] = {"characters": CharacterTokenizer, "bigrams": BigramTokenizer}


def build_tokenizer(policy: Text, texts: Iterable[str]) -> Tokenizer:
    """Make the tokenizer that `policy` describes from training transcripts, normalised here."""
    normalized = [
        normalize(text, case=policy.case, punctuation=policy.punctuation, language=policy.language) for text in texts
    ]
    if not any(normalized):
        raise DataError("the training transcripts are all empty: there is nothing to build a tokenizer from")
    by_characters = _BY_CHARACTERS.get(policy.tokenizer)
    if by_characters is not None:
        return by_characters.build(normalized, policy)
    return SentencePieceTokenizer.build([text for text in normalized if text], policy)


def tokenizer_from_json(text: str) -> Tokenizer:
    """Read what `to_json` wrote.

    Raises:
        CheckpointError: it is not a tokenizer of this version.
    """
    try:
        data = json.loads(text)
        policy = Text.model_validate(data["policy"])
        by_characters = _BY_CHARACTERS.get(policy.tokenizer)
        if by_characters is not None:
            return by_characters(data["pieces"], policy)
        return SentencePieceTokenizer(base64.b64decode(data["model"]), policy)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"tokenizer.json: got {text[:80]!r}..., expected a tokenizer: {error}") from error


@dataclass(frozen=True, slots=True)
class UnknownCharacter:
    """A character that the tokenizer lacks: how often it occurs and where first."""

    character: str
    count: int
    where: str

    def __str__(self) -> str:
        return f"{_describe(self.character)}: {self.count} times, first in {self.where}"


def unknown_characters(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> list[UnknownCharacter]:
    """Characters of (where, text) pairs that the tokenizer cannot spell, most frequent first."""
    known = tokenizer.characters
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for where, text in texts:
        for character in tokenizer.normalize(text):
            if character not in known:
                counts[character] = counts.get(character, 0) + 1
                first.setdefault(character, where)
    return [UnknownCharacter(c, counts[c], first[c]) for c in sorted(counts, key=lambda c: (-counts[c], c))]


def _describe(character: str) -> str:
    if len(character) != 1:
        return repr(character)
    return f"{character!r} (U+{ord(character):04X}, {unicodedata.name(character, 'no name')})"
