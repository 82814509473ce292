"""Text for a language model: files to word numbers, in one pass and bounded memory but for the vocabulary."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from asr.data.progress import progress_bar
from asr.errors import DataError
from asr.text.tokenizer import Tokenizer

SPECIAL = (b"<unk>", b"<s>", b"</s>")
UNKNOWN, BEGIN, END = range(3)  # their numbers
STANDARD_INPUT = "-"
BLOCK_BYTES = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class NumberedText:
    """A text as numbers.

    ids: file of int32: the words of each sentence, then END. words: spelling of each number, by first appearance
    behind SPECIAL. num_words: in the text, sentence ends not counted; num_empty: sentences without a word.
    """

    ids: Path
    words: list[bytes]
    num_words: int
    num_sentences: int
    num_empty: int


def number_text(
    texts: Sequence[str | Path], ids: Path, *, tokenizer: Tokenizer | None = None, characters: bool = False
) -> NumberedText:
    """Read texts with a sentence a line, words parted by white space.

    Args:
        texts: UTF-8 files, plain or gzipped; "-" is standard input.
        ids: the file to write.
        tokenizer: if given, its normalisation is applied.
        characters: take each character for a word; white space is left out.

    Raises:
        DataError: a file cannot be read, is not UTF-8, or holds one of SPECIAL; or there are no words.
    """
    numbers = _Numbers((word, i) for i, word in enumerate(SPECIAL))
    units = _as_units(tokenizer, characters)
    num_ids = num_sentences = num_empty = 0
    last = np.array([END], np.int32)
    with ids.open("wb") as handle:
        for text in texts:
            line = 1
            for block in _blocks(text):
                lines = block.count(b"\n")
                decoded = _decoded(block, text, line)  # in any case: what is not UTF-8 is refused
                words = units(decoded) if units else block
                split = words.replace(b"\n", b" </s> ").split()
                found = np.fromiter(map(numbers.__getitem__, split), np.int32, len(split))
                _refuse_special(found, words, lines, text, line)
                found.tofile(handle)
                before = np.concatenate((last, found))
                num_empty += int(np.count_nonzero((found == END) & (before[:-1] == END)))
                last = before[-1:]
                num_ids, num_sentences, line = num_ids + len(found), num_sentences + lines, line + lines
    num_words = num_ids - num_sentences
    if not num_words:
        raise DataError(f"{', '.join(map(str, texts))}: no words in it; expected text, one sentence a line")
    return NumberedText(ids, list(numbers), num_words, num_sentences, num_empty)


class _Numbers(dict[bytes, int]):
    """Gives a word that it does not know the next number."""

    def __missing__(self, word: bytes) -> int:
        number = self[word] = len(self)
        return number


class _Normalized(dict[str, str]):
    """Normalises a word once. Words can be taken one by one, because no rule looks beyond white space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._normalize = tokenizer.normalize

    def __missing__(self, word: str) -> str:
        normalized = self[word] = self._normalize(word)
        return normalized


def _as_units(tokenizer: Tokenizer | None, characters: bool) -> Callable[[str], bytes] | None:
    """What makes units, parted by spaces, of a piece of text with whole words; line ends stay. None: nothing to do."""
    if tokenizer is None and not characters:
        return None
    normalized = _Normalized(tokenizer) if tokenizer else None

    def units(text: str) -> bytes:
        lines = text.split("\n")
        if normalized is not None:
            lines = [" ".join(map(normalized.__getitem__, line.split())) for line in lines]
        if characters:
            lines = [" ".join("".join(line.split())) for line in lines]
        return "\n".join(lines).encode()

    return units


def _blocks(text: str | Path) -> Iterator[bytes]:
    """A file in pieces of whole words; its last line ends, whether a line end stands there or not."""
    rest, first, open_line = b"", True, False
    with _open(text) as (handle, advance):
        while True:
            try:
                block = handle.read(BLOCK_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{text}: cannot be read: {error}") from error
            if not block:
                break
            advance()
            block = rest + (block.removeprefix(_BYTE_ORDER_MARK) if first else block)
            first = False
            cut = 1 + max(block.rfind(b"\n"), block.rfind(b" "))
            rest = block[cut:]
            if cut:
                open_line = block[cut - 1 : cut] != b"\n"
                yield block[:cut]
    if rest or open_line:
        yield rest + b"\n"


@contextmanager
def _open(text: str | Path) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """A file to read from, unzipped if need be, and what moves its progress bar."""
    with ExitStack() as stack:
        try:
            if str(text) == STANDARD_INPUT:
                raw, size = cast(BufferedReader, sys.stdin.buffer), None
            else:
                raw = stack.enter_context(Path(text).open("rb"))
                size = os.fstat(raw.fileno()).st_size
            zipped = raw.peek(2)[:2] == _GZIP_MAGIC
        except OSError as error:
            raise DataError(f"{text}: {error.strerror}; expected a text, one sentence a line") from error
        progress = stack.enter_context(progress_bar(f"reading {text}", size, in_bytes=True))
        done = 0

        def advance() -> None:
            nonlocal done
            if size is not None:
                progress(raw.tell() - done)
                done = raw.tell()

        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, advance


def _decoded(block: bytes, text: str | Path, line: int) -> str:
    try:
        return block.decode()
    except UnicodeDecodeError as error:
        line += block.count(b"\n", 0, error.start)
        raise DataError(
            f"{text}:{line}: got byte {block[error.start]:#04x}, expected UTF-8; convert the file"
        ) from error


def _refuse_special(found: NDArray[np.int32], words: bytes, lines: int, text: str | Path, line: int) -> None:
    """A word that is spelled as a sentence's begin or end, or as the unknown word, cannot be counted as a word."""
    if np.count_nonzero(found == END) == lines and not (found <= BEGIN).any():
        return
    for offset, content in enumerate(words.split(b"\n")):
        for word in SPECIAL:
            if word in content.split():
                raise DataError(
                    f"{text}:{line + offset}: got the word {word.decode()}, which a language model has for itself; "
                    "take it out of the text"
                )
