"""Prefix beam search with an n-gram language model, a word list and hotwords, offline and in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from asr.decode import _numba
from asr.decode._numba import (
    CONTEXT,
    DELIMITER,
    ENTRY,
    LETTER,
    LN_10,
    NGRAM,
    NODE,
    TOKEN,
    UNKNOWN,
    Ngrams,
    Rules,
    Tokens,
)
from asr.decode.decoder import Hypothesis, TokenPath
from asr.decode.hotwords import build_hotwords
from asr.decode.ngram import BEGIN, END, UNKNOWN_WORDS, NgramModel
from asr.decode.trie import build_trie
from asr.errors import ConfigError, DataError
from asr.text.tokenizer import SPACE, SentencePieceTokenizer, Tokenizer

Unit = Literal["words", "characters", "tokens"]

MARKS = (BEGIN, END, *UNKNOWN_WORDS)  # what stands among a language model's words and is none
SPACE_WORDS = ("<space>", "|")  # how language models over characters name the space
MOST = 1e-3  # of a log-probability, for rounding
EMPTY_KEY = np.uint64(0x243F6A8885A308D3)  # hash of no tokens
NO_TRIE = np.zeros(1, LETTER)
NO_LM = Ngrams(np.zeros(1, NGRAM), np.zeros(1, CONTEXT), np.zeros(0, np.int32), 0, 0)


class BeamState(NamedTuple):
    """What the frames so far have left; arrays are never changed in place.

    entries: (K,) hypotheses, records of `ENTRY`. nodes: (N,) where their tokens stand, records of `NODE`.
    frame: frames read.
    """

    entries: NDArray[np.void]
    nodes: NDArray[np.void]
    frame: int


class BeamDecoder:
    """Prefix beam search (Hannun et al. 2014, arXiv 1408.2873; Deep Speech 2, section 3.8).

    It seeks the tokens y for the frames x that maximise

        log P(y | x) + alpha * log P_lm(y) + beta * units(y) + boosts of the hotwords in y,

    where P(y | x) sums all alignments of y that the beam has kept. Before its last word is complete, a hypothesis is
    ranked with the best unigram that its letters allow, so that a rare word's cost does not come all at once at its
    end. What was ranked so is only kept or dropped by it: totals are those of the formula.

    Log-probabilities are read as float32 and summed in float64. An item's result depends neither on the others in its
    batch nor on how its frames are split.

    Args:
        tokenizer: what the tokens spell.
        beam_size: hypotheses that are kept after each frame.
        lm: language model; None for none.
        alpha: its weight.
        beta: bonus for each unit.
        unit: what the language model's words are and what the bonus counts: words, single characters (Mandarin), or the
            tokens' own pieces. A model over characters may have the space as <space> or |; if not, spaces cost nothing.
        word_list: only these words and those of hotwords may be said; None for any. A hypothesis whose last word is not
            whole is given only where no other is left. Those that the tokens cannot spell are left out: `unspelled`.
        hotwords: boost of each word or phrase, in nats, each time it is said.
        unknown_score: added, in nats, for each unit that the language model lacks, beside what it gives <unk>.
        cutoff_probability: a frame extends hypotheses with its most probable tokens, as many as together have this
            probability (section 3.8 of Deep Speech 2),
        cutoff_count: but no more than this.
        margin: hypotheses that many nats below the best are dropped.
        horizon_frames: tokens older than this are decided: hypotheses that disagree with the best one on them go. So
            endless streams take bounded memory, their text becomes stable, and the beam is not filled with doubts about
            what a language model has long forgotten. For N-best lists of whole long utterances, set it to their length.

    Raises:
        ConfigError: the tokens cannot spell a hotword, any word of the list, or any of the model's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        beam_size: int = 100,
        lm: NgramModel | None = None,
        alpha: float = 0.5,
        beta: float = 0.0,
        unit: Unit = "words",
        word_list: Iterable[str] | None = None,
        hotwords: Mapping[str, float] | None = None,
        unknown_score: float = 0.0,
        cutoff_probability: float = 0.99,
        cutoff_count: int = 40,
        margin: float = math.inf,
        horizon_frames: int = 256,
    ) -> None:
        if beam_size < 1 or cutoff_count < 1 or horizon_frames < 1 or not margin > 0 or not 0 < cutoff_probability <= 1:
            raise ValueError(
                f"got beam_size {beam_size}, cutoff_count {cutoff_count}, horizon_frames {horizon_frames}, "
                f"margin {margin}, cutoff_probability {cutoff_probability}, expected more than 0, the last at most 1"
            )
        if not all(map(math.isfinite, (alpha, beta, unknown_score, *(hotwords or {}).values()))):
            raise ValueError(
                f"got alpha {alpha}, beta {beta}, unknown_score {unknown_score}, hotwords {hotwords}, expected numbers"
            )
        if alpha < 0:
            raise ValueError(f"alpha: got {alpha}, expected at least 0")
        if word_list is not None and unit != "words":
            raise ValueError(f"word_list: got one with unit {unit!r}, expected unit 'words'")
        self.tokenizer = tokenizer
        self.lm = lm
        self.cutoff_count = cutoff_count
        alphabet = _Alphabet(tokenizer)
        self._tokens = alphabet.tokens(lm, unit)
        self._ngrams = lm.arrays if lm else NO_LM
        self._trie = NO_TRIE
        by_words = unit == "words"
        if word_list is not None:
            word_list = alphabet.words([*word_list, *(hotwords or ())])
        if by_words and (lm is not None or word_list is not None):
            self._trie = _vocabulary(alphabet, lm, word_list, alpha=alpha, beta=beta, unknown_score=unknown_score)
        self.unspelled = [word for word in word_list or () if not alphabet.spell(word)]
        phrases = {alphabet.spell_phrase(phrase): float(boost) for phrase, boost in (hotwords or {}).items()}
        self._hotwords = build_hotwords(phrases, whole_words=by_words)
        self._rules = Rules(
            beam_size=int(beam_size),
            cutoff=math.inf if cutoff_probability == 1 else float(cutoff_probability),
            margin=float(margin),
            horizon=int(horizon_frames),
            alpha=float(alpha) * LN_10,
            beta=float(beta),
            unknown=float(unknown_score),
            unknown_word=lm.unknown if lm else -1,
            by_words=by_words,
            has_lm=lm is not None,
            has_trie=self._trie is not NO_TRIE,
            has_hotwords=bool(phrases),
            closed=word_list is not None,
            most_hot=self._hotwords.most,
            second=self._ngrams.second,
            third=self._ngrams.third,
        )
        self._scorers = (self._trie, self._hotwords.nodes, *self._ngrams[:3])

    def initial_state(self) -> BeamState:
        """The state before the first frame."""
        entry = np.zeros(1, ENTRY)
        entry["key"] = EMPTY_KEY
        entry["nonblank"] = entry["best_nonblank"] = entry["peak_blank"] = entry["peak_nonblank"] = -np.inf
        entry["closing"] = entry["unknown"] = UNKNOWN
        entry["last"] = -1
        entry["context"] = self.lm.begin_state if self.lm else 0
        entry["hot"] = self._hotwords.start
        node = np.zeros(1, NODE)
        node["token"] = -1
        return BeamState(entry, node, 0)

    def extend(
        self, states: Sequence[BeamState], log_probs: Float[Tensor, "B n V"], lengths: Int[Tensor, "B"]
    ) -> list[BeamState]:
        """Read `lengths[i]` frames of row i into state i. Items run side by side on as many threads as torch uses.

        Raises:
            DataError: a log-probability is not a number, or not below 0.
        """
        if log_probs.shape[2] != self.tokenizer.num_tokens:
            raise ValueError(f"log_probs: got {log_probs.shape[2]} tokens, expected {self.tokenizer.num_tokens}")
        log_probs = log_probs.detach().to("cpu", torch.float32).contiguous()
        top, top_ids = log_probs.topk(min(self.cutoff_count, log_probs.shape[2]), dim=2)
        rows = [array.numpy() for array in (log_probs, top, top_ids)]
        jobs = [
            (state, *(row[i, :length] for row in rows))
            for i, (state, length) in enumerate(zip(states, lengths.tolist(), strict=True))
        ]
        threads = min(torch.get_num_threads(), len(jobs))
        if threads < 2:
            return [self._read(*job) for job in jobs]
        with ThreadPoolExecutor(threads) as pool:  # made anew: threads that wait between calls do not survive a fork
            return list(pool.map(lambda job: self._read(*job), jobs))

    def _read(self, state: BeamState, log_probs: NDArray[Any], top: NDArray[Any], top_ids: NDArray[Any]) -> BeamState:
        greatest = top[:, 0]  # NaN if any is
        if not (greatest <= MOST).all():
            raise DataError(f"log_probs: got {greatest.max()}, expected log-probabilities, numbers up to 0")
        frames = (log_probs, top, top_ids)
        return BeamState(*_numba.read_frames(*state, *frames, self._rules, *self._tokens, *self._scorers))

    def best(self, state: BeamState, count: int = 1, final: bool = False) -> list[Hypothesis]:
        """The `count` best hypotheses, best first; see `Decoder.best`."""
        entries = state.entries
        acoustic = np.logaddexp(entries["blank"], entries["nonblank"])
        lm, units, totals = entries["lm"], entries["units"], entries["rank"]
        if final:
            end = self.lm.end if self.lm else -1
            ended = _numba.finish(entries.copy(), end, self._rules, *self._scorers)
            whole = np.isfinite(ended[:, 0])
            if whole.any():
                totals = acoustic + ended[:, 0]
                lm, units = ended[:, 1], ended[:, 2]
            else:
                totals = acoustic + entries["fixed"]
        order = np.argsort(-totals, kind="stable")[:count]
        return [
            Hypothesis(self._path(state, i), float(acoustic[i]), float(lm[i]), int(units[i]), float(totals[i]))
            for i in order.tolist()
            if totals[i] > -np.inf
        ]

    def num_stable(self, state: BeamState) -> int:
        """Leading tokens, with frames and ends, that no later frame can change."""
        return max(0, len(self._shared(state)) - 1)  # the last one's end may still change

    def drop_stable(self, state: BeamState, count: int) -> BeamState:
        """Forget that many leading tokens."""
        stable = self.num_stable(state)
        if not 0 <= count <= stable:
            raise ValueError(f"count: got {count}, expected a number from 0 to num_stable = {stable}")
        if count == 0:
            return state
        first = int(self._shared(state)[count - 1])  # what stands behind it descends from it, because all chains do
        entries, nodes = state.entries.copy(), state.nodes[first:].copy()
        nodes["before"] -= first
        nodes["token"][0] = -1
        entries["path_blank"] -= first
        entries["path_nonblank"] -= first
        return BeamState(entries, nodes, state.frame)

    def _shared(self, state: BeamState) -> NDArray[np.int64]:
        return _numba.shared_chain(*state[:2])

    def _path(self, state: BeamState, i: int) -> TokenPath:
        entry = state.entries[i]
        blank = entry["best_blank"] >= entry["best_nonblank"]
        last = entry["path_blank"] if blank else entry["path_nonblank"]
        nodes = state.nodes[_numba.chain_to(state.nodes, last)]
        end = entry["end_blank"] if blank else state.frame
        peak = entry["peak_blank"] if blank else entry["peak_nonblank"]
        return TokenPath(
            ids=nodes["token"].tolist(),
            frames=nodes["frame"].tolist(),
            ends=[*nodes["before_end"][1:].tolist(), int(end)][: len(nodes)],
            log_probs=[*nodes["before_peak"][1:].tolist(), float(peak)][: len(nodes)],
            total=float(max(entry["best_blank"], entry["best_nonblank"])),
        )


class _Alphabet:
    """Numbers for characters, in Unicode order, from 1 on; `DELIMITER` is the space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        mark = SentencePieceTokenizer.WORD_MARK
        self.texts = [""]  # of tokens, a space where a word begins
        for token in range(1, tokenizer.num_tokens):
            piece = tokenizer.pieces[token]
            marked = tokenizer.is_space(token) or tokenizer.starts_word(token)
            self.texts.append(SPACE + piece.replace(mark, "").strip() if marked else piece)
        characters = sorted({character for text in self.texts for character in text} - {SPACE})
        self.numbers = {SPACE: DELIMITER, **{character: i for i, character in enumerate(characters, 1)}}

    def spell(self, text: str) -> tuple[int, ...] | None:
        """Numbers of a text's characters; None if there is one that no token has."""
        try:
            return tuple(self.numbers[character] for character in text)
        except KeyError:
            return None

    def words(self, entries: Iterable[str]) -> list[str]:
        """What entries of a list say, normalised as transcripts are, which can make several words of one."""
        said = (self.tokenizer.normalize(entry) for entry in entries if entry not in MARKS)
        return list(dict.fromkeys(word for text in said for word in text.split()))

    def spell_phrase(self, phrase: str) -> tuple[int, ...]:
        """Numbers of a hotword's characters, normalised as transcripts are."""
        spelled = self.spell(self.tokenizer.normalize(phrase))
        if not spelled:
            raise ConfigError(f"hotwords: got {phrase!r}, expected a word or phrase that the model's tokens can spell")
        return spelled

    def tokens(self, lm: NgramModel | None, unit: Unit) -> Tokens:
        """What the compiled loops have to know of tokens."""
        closes = np.array([text.startswith(SPACE) for text in self.texts])
        texts = [text.removeprefix(SPACE) for text in self.texts] if unit == "words" else self.texts
        spelled = [[self.numbers[character] for character in text] for text in texts]
        if unit == "words":
            units: list[list[str]] = [[] for _ in texts]
        elif unit == "characters":
            units = [list(text) for text in texts]
        else:
            units = [[], *([piece] for piece in self.tokenizer.pieces[1:])]
        numbers = [[self._unit(lm, word) for word in of_token] for of_token in units]
        numbers = [[number for number in of_token if number >= -1] for of_token in numbers]
        tokens = np.zeros(len(texts) + 1, TOKEN)
        tokens["closes"][:-1] = closes
        tokens["character"][1:] = np.cumsum([len(row) for row in spelled])
        tokens["unit"][1:] = np.cumsum([len(row) for row in numbers])
        flat = [np.array([number for row in rows for number in row], np.int32) for rows in (spelled, numbers)]
        return Tokens(tokens, *flat)

    def _unit(self, lm: NgramModel | None, unit: str) -> int:
        """Id of a unit; -2 if it counts for nothing."""
        if unit.strip(SPACE + SentencePieceTokenizer.WORD_MARK):
            return lm.id(unit) if lm else -1
        named = [word for word in (unit, *SPACE_WORDS) if lm and word in lm]
        return lm.id(named[0]) if lm and named else -2


def _vocabulary(
    alphabet: _Alphabet,
    lm: NgramModel | None,
    word_list: Sequence[str] | None,
    *,
    alpha: float,
    beta: float,
    unknown_score: float,
) -> NDArray[np.void]:
    """The words that may be said, or else all of the language model's, with their ids in it."""
    whose = "lm: got a language model of which" if word_list is None else "word_list: got a list of which"
    words = word_list if word_list is not None else [word for word in lm.words if word not in MARKS] if lm else []
    spelled = [(word, letters) for word in words if (letters := alphabet.spell(word)) and DELIMITER not in letters]
    if not spelled:
        example = f", {words[0]!r} for one," if words else ""
        raise ConfigError(f"{whose} no word{example} can be spelled by the model's tokens; is its case another?")
    children, labels, ends = build_trie([letters for _, letters in spelled])
    ids = np.full(len(labels), -1, np.int32)
    for end, (word, _) in zip(ends.tolist(), spelled, strict=True):
        ids[end] = lm.id(word) if lm else 0
    expected = np.where(ids >= 0, 0.0, -np.inf)
    if lm is not None:
        log10 = lm.arrays.ngrams["log10"].astype(np.float64)
        expected += alpha * LN_10 * log10[1 + np.maximum(ids, 0)]
        expected[ids == lm.unknown] += unknown_score
        if word_list is None:
            expected = np.maximum(expected, alpha * LN_10 * log10[1 + lm.unknown] + unknown_score)
    trie = np.zeros(len(children), LETTER)
    trie["child"] = children
    for name, values in {"label": labels, "word": ids, "ahead": expected + beta}.items():
        trie[name][:-1] = values
    _numba.summarise(trie)
    return trie
