"""Beam search against the search over all strings, and its contracts: chunks, batches, endless streams."""

from __future__ import annotations

import argparse
import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.config.schema import Text
from asr.decode import search
from asr.decode.align import viterbi
from asr.decode.beam import BeamDecoder, BeamState
from asr.decode.decoder import Hypothesis
from asr.decode.ngram import NgramModel
from asr.errors import ConfigError, DataError
from asr.text.tokenizer import CharacterTokenizer, SentencePieceTokenizer
from tests.support.beam import best_alignment, exhaustive, hotword_score
from tests.support.ngram import DictModel, random_orders, write_arpa

WIDE = {"beam_size": 6000, "cutoff_probability": 1.0}  # nothing is cut
WORDS = ["a", "b", "ab", "ba", "bb"]
LN_10 = math.log(10)


@pytest.fixture(scope="module")
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer(" ab", Text())


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arpa(tmp_path_factory.mktemp("lm") / "words.arpa", random_orders(WORDS, order=3, keep=0.4, seed=5))


@pytest.fixture(scope="module")
def lm(arpa: Path) -> NgramModel:
    return NgramModel.read(arpa)


@pytest.fixture(scope="module")
def reference(arpa: Path) -> DictModel:
    return DictModel(arpa)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).log_softmax(-1)


def decode(decoder: BeamDecoder, log_probs: Tensor) -> BeamState:
    (state,) = decoder.extend([decoder.initial_state()], log_probs[None], torch.tensor([len(log_probs)]))
    return state


def assert_equal_to_exhaustive(
    decoder: BeamDecoder, log_probs: Tensor, score: Callable[[tuple[int, ...]], float | None]
) -> None:
    expected = exhaustive(log_probs.numpy(), score)
    got = decoder.best(decode(decoder, log_probs), len(expected) + 1, final=True)
    assert len(got) == len(expected) > 10
    totals = {tokens: (acoustic, total) for tokens, acoustic, total in expected}
    for hypothesis in got:
        acoustic, total = totals[tuple(hypothesis.path.ids)]
        assert hypothesis.acoustic == pytest.approx(acoustic, abs=1e-10)
        assert hypothesis.total == pytest.approx(total, abs=1e-5)  # the model's weights are float32
    assert [h.total for h in got] == sorted((h.total for h in got), reverse=True)


def test_n_best_without_a_model_is_the_brute_force_sum(tokenizer: CharacterTokenizer) -> None:
    for seed in range(3):
        assert_equal_to_exhaustive(BeamDecoder(tokenizer, **WIDE), draw(6, 4, seed=seed), lambda tokens: 0.0)


def test_words_with_a_model(tokenizer: CharacterTokenizer, lm: NgramModel, reference: DictModel) -> None:
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=0.7, beta=0.9, unknown_score=-1.5, **WIDE)

    def score(tokens: tuple[int, ...]) -> float:
        words = tokenizer.decode(tokens).split()
        unknown = sum(word not in WORDS for word in words)
        return 0.7 * LN_10 * reference.score(words) + 0.9 * len(words) - 1.5 * unknown

    for seed in range(3):
        assert_equal_to_exhaustive(decoder, draw(6, 4, seed=seed), score)


def test_words_of_a_list(tokenizer: CharacterTokenizer, lm: NgramModel, reference: DictModel) -> None:
    listed = ["a", "ab", "bab"]  # the model lacks the last
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=0.7, beta=-0.3, word_list=listed, unknown_score=0.5, **WIDE)

    def score(tokens: tuple[int, ...]) -> float | None:
        words = tokenizer.decode(tokens).split()
        if not set(words) <= set(listed):
            return None
        return 0.7 * LN_10 * reference.score(words) - 0.3 * len(words) + 0.5 * words.count("bab")

    assert_equal_to_exhaustive(decoder, draw(6, 4, seed=1), score)


def test_entries_that_normalising_splits_are_several_words(tokenizer: CharacterTokenizer) -> None:
    assert tokenizer.normalize("ab-ba") == "ab ba"
    decoder = BeamDecoder(tokenizer, word_list=["ab-ba", "xyz", "a\u00e9"], hotwords={"bb-a": 1.0}, **WIDE)
    assert decoder.unspelled == ["xyz", "a\u00e9"]
    allowed = {"ab", "ba", "bb", "a"}

    def score(tokens: tuple[int, ...]) -> float | None:
        words = tokenizer.decode(tokens).split()
        return hotword_score(words, {"bb a": 1.0}) if set(words) <= allowed else None

    assert_equal_to_exhaustive(decoder, draw(6, 4, seed=2), score)


def test_words_that_are_left_out_are_said(
    tokenizer: CharacterTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    search.add_arguments(parser)
    path = tmp_path / "words.txt"
    for words, said in (
        (["a", "ab-b"], []),
        (["a", "xy-ab", "z"], [f"{path}: left out 2 words that the model's tokens cannot spell: xy, z"]),
        (["a", *"cdefgh"], [f"{path}: left out 6 words that the model's tokens cannot spell: c, d, e, f, g, ..."]),
    ):
        path.write_text("\n".join(words))
        search.build_decoder(parser.parse_args(["--word-list", str(path)]), tokenizer)
        assert [line for line in capsys.readouterr().err.splitlines() if "left out" in line] == said


def test_a_list_without_a_model(tokenizer: CharacterTokenizer) -> None:
    decoder = BeamDecoder(tokenizer, beta=0.4, word_list=WORDS, **WIDE)

    def score(tokens: tuple[int, ...]) -> float | None:
        words = tokenizer.decode(tokens).split()
        return 0.4 * len(words) if set(words) <= set(WORDS) else None

    assert_equal_to_exhaustive(decoder, draw(6, 4, seed=2), score)


def test_hotwords(tokenizer: CharacterTokenizer, lm: NgramModel, reference: DictModel) -> None:
    hotwords = {"a": 0.5, "ab": 1.0, "a b": 2.0, "b a": 1.5, "b": -0.7}
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=0.7, beta=0.9, hotwords=hotwords, **WIDE)

    def score(tokens: tuple[int, ...]) -> float:
        words = tokenizer.decode(tokens).split()
        return 0.7 * LN_10 * reference.score(words) + 0.9 * len(words) + hotword_score(words, hotwords)

    assert_equal_to_exhaustive(decoder, draw(6, 4, seed=3), score)


@pytest.mark.parametrize("unit", ["characters", "tokens"])
def test_characters_with_a_model(unit: str, tokenizer: CharacterTokenizer, tmp_path: Path) -> None:
    arpa = write_arpa(tmp_path / "lm.arpa", random_orders(["a", "b"], order=3, keep=0.6, seed=1))
    hotwords = {"ab": 1.0, "b": 0.5}
    decoder = BeamDecoder(
        tokenizer, lm=NgramModel.read(arpa), alpha=0.6, beta=0.8, unit=unit, hotwords=hotwords, **WIDE
    )  # type: ignore[arg-type]
    reference = DictModel(arpa)

    def score(tokens: tuple[int, ...]) -> float:
        characters = [tokenizer.pieces[token] for token in tokens if token != 1]  # the model lacks the space
        text = "".join(tokenizer.pieces[token] for token in tokens)
        gained = 1.0 * text.count("ab") + 0.5 * text.count("b")
        return 0.6 * LN_10 * reference.score(characters) + 0.8 * len(characters) + gained

    assert_equal_to_exhaustive(decoder, draw(6, 4, seed=4), score)


def test_a_model_over_characters_with_the_space(tokenizer: CharacterTokenizer, tmp_path: Path) -> None:
    arpa = write_arpa(tmp_path / "lm.arpa", random_orders(["a", "<space>"], order=2, keep=0.8, seed=2))
    decoder = BeamDecoder(tokenizer, lm=NgramModel.read(arpa), alpha=1.1, unit="characters", **WIDE)
    reference = DictModel(arpa)

    def score(tokens: tuple[int, ...]) -> float:
        return 1.1 * LN_10 * reference.score(["<space>" if t == 1 else tokenizer.pieces[t] for t in tokens])

    assert_equal_to_exhaustive(decoder, draw(5, 4, seed=5), score)


def test_pieces_that_begin_words(lm: NgramModel, reference: DictModel) -> None:
    texts = ["ab ba a b bb", "ba ab ab", "a bb b"] * 5
    policy = Text(tokenizer="bpe", vocabulary_size=6)
    pieces = SentencePieceTokenizer.build(texts, policy)
    hotwords = {"ab a": 1.0, "b": 0.6}
    decoder = BeamDecoder(pieces, lm=lm, alpha=0.7, beta=0.2, hotwords=hotwords, **WIDE)
    mark = pieces.WORD_MARK

    def score(tokens: tuple[int, ...]) -> float:
        words = "".join(pieces.pieces[token] for token in tokens).replace(mark, " ").split()
        return 0.7 * LN_10 * reference.score(words) + 0.2 * len(words) + hotword_score(words, hotwords)

    assert {"\u2581", "\u2581a"} & set(pieces.pieces)
    assert_equal_to_exhaustive(decoder, draw(5, pieces.num_tokens, seed=6), score)


@settings(max_examples=40)
@given(data=st.data())
def test_any_small_case(
    tokenizer: CharacterTokenizer, lm: NgramModel, reference: DictModel, data: st.DataObject
) -> None:
    """Any weights, list and hotwords; and frames in which tokens, the blank too, are impossible."""
    alpha, beta = data.draw(st.floats(0, 2)), data.draw(st.floats(-2, 2))
    listed = data.draw(st.none() | st.sets(st.sampled_from([*WORDS, "bab", "bba"]), min_size=1))
    hotwords = data.draw(st.dictionaries(st.sampled_from(["a", "ab", "b a", "ba", "a b a"]), st.floats(-1, 3)))
    logits = draw(data.draw(st.integers(1, 5)), 4, seed=data.draw(st.integers(0, 99)))
    for row in logits:
        row[list(data.draw(st.sets(st.integers(0, 3), max_size=2)))] = -math.inf
    log_probs = logits.log_softmax(-1)
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=alpha, beta=beta, word_list=listed, hotwords=hotwords, **WIDE)

    def score(tokens: tuple[int, ...]) -> float | None:
        words = tokenizer.decode(tokens).split()
        if listed is not None and not set(words) <= listed | {word for phrase in hotwords for word in phrase.split()}:
            return None
        return alpha * LN_10 * reference.score(words) + beta * len(words) + hotword_score(words, hotwords)

    expected = {tokens: (acoustic, total) for tokens, acoustic, total in exhaustive(log_probs.numpy(), score)}
    if expected:
        got = decoder.best(decode(decoder, log_probs), 6000, final=True)
        assert {tuple(h.path.ids): (h.acoustic, h.total) for h in got} == {
            tokens: (pytest.approx(acoustic, abs=1e-10), pytest.approx(total, abs=1e-5))
            for tokens, (acoustic, total) in expected.items()
        }


def one_frame(decoder: BeamDecoder, *probabilities: float) -> set[tuple[int, ...]]:
    """The strings that are left after a frame."""
    return {tuple(h.path.ids) for h in decoder.best(decode(decoder, torch.tensor([probabilities]).log()), 9)}


def test_what_is_cut(tokenizer: CharacterTokenizer) -> None:
    probabilities = 0.5, 0.005, 0.3, 0.195
    assert one_frame(BeamDecoder(tokenizer, cutoff_probability=1.0), *probabilities) == {(), (1,), (2,), (3,)}
    assert one_frame(BeamDecoder(tokenizer), *probabilities) == {(), (2,), (3,)}  # 0.995 of the probability
    assert one_frame(BeamDecoder(tokenizer, cutoff_probability=0.75), *probabilities) == {(), (2,)}
    assert one_frame(BeamDecoder(tokenizer, cutoff_count=2), *probabilities) == {(), (2,)}
    assert one_frame(BeamDecoder(tokenizer, margin=0.6), *probabilities) == {(), (2,)}  # log(0.5 / 0.3) = 0.51
    assert one_frame(BeamDecoder(tokenizer, beam_size=1), *probabilities) == {()}
    # What leads to a prefix that is held is never cut: a again, and a after the blank.
    decoder = BeamDecoder(tokenizer, cutoff_count=1)
    (best,) = decoder.best(decode(decoder, torch.tensor([[0.2, 0.0, 0.8, 0.0], [0.6, 0.0, 0.4, 0.0]]).log()))
    assert best.path.ids == [2]
    assert best.acoustic == pytest.approx(math.log(0.8 * 1.0 + 0.2 * 0.4), abs=1e-6)


def test_the_best_alignment_gives_the_places(tokenizer: CharacterTokenizer) -> None:
    log_probs = draw(6, 4, seed=7)
    decoder = BeamDecoder(tokenizer, **WIDE)
    for hypothesis in decoder.best(decode(decoder, log_probs), 40, final=True):
        path = hypothesis.path
        assert path.total == pytest.approx(best_alignment(log_probs.numpy(), tuple(path.ids)), abs=1e-10)
        total, frame = 0.0, 0
        for token, first, end, peak in zip(path.ids, path.frames, path.ends, path.log_probs, strict=True):
            assert frame <= first < end <= len(log_probs)
            total += float(log_probs[frame:first, 0].sum() + log_probs[first:end, token].sum())
            assert peak == pytest.approx(float(log_probs[first:end, token].max()), abs=1e-12)
            frame = end
        assert total + float(log_probs[frame:, 0].sum()) == pytest.approx(path.total, abs=1e-5)


def test_n_best_scores_can_be_weighed_anew(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=0.7, beta=0.9, **WIDE)
    for h in decoder.best(decode(decoder, draw(6, 4, seed=8)), 50, final=True):
        assert h.total == pytest.approx(h.acoustic + 0.7 * h.lm + 0.9 * h.num_units, abs=1e-9)


def test_a_narrow_beam_finds_what_is_plain(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    said = [2, 2, 0, 1, 3, 0, 3, 1, 1, 2, 3, 0]  # "a bb ab"
    log_probs = torch.full((len(said), 4), -8.0)
    log_probs[range(len(said)), said] = 0.0
    log_probs = log_probs.log_softmax(-1)
    for options in ({}, {"lm": lm, "alpha": 0.1}, {"word_list": WORDS}, {"hotwords": {"bb": 1.0}}):
        decoder = BeamDecoder(tokenizer, beam_size=2, **options)
        (best,) = decoder.best(decode(decoder, log_probs), final=True)
        assert tokenizer.decode(best.path.ids) == "a bb ab"
        assert best.path.frames == [0, 3, 4, 6, 7, 9, 10]
        assert best.path.ends == [2, 4, 5, 7, 9, 10, 11]


def everything(decoder: BeamDecoder, state: BeamState) -> list[Hypothesis]:
    return decoder.best(state, 1000, final=True) + decoder.best(state, 1000)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 300), max_size=12), seed=st.integers(0, 3))
def test_chunks_change_nothing(tokenizer: CharacterTokenizer, lm: NgramModel, cuts: list[int], seed: int) -> None:
    decoder = BeamDecoder(
        tokenizer, beam_size=8, lm=lm, alpha=0.7, beta=0.9, hotwords={"ab a": 2.0}, horizon_frames=100
    )
    log_probs = draw(300, 4, seed=seed, scale=2.0)
    whole = decode(decoder, log_probs)
    state = decoder.initial_state()
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), 300], strict=True):
        (state,) = decoder.extend([state], log_probs[None, first:last], torch.tensor([last - first]))
        state = pickle.loads(pickle.dumps(copy.deepcopy(state)))  # noqa: S301 - our own
    assert everything(decoder, state) == everything(decoder, whole)
    assert np.array_equal(state.nodes, whole.nodes)


def test_items_do_not_meet(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    decoder = BeamDecoder(tokenizer, beam_size=8, lm=lm, alpha=0.7)
    log_probs = draw(5, 40, 4, scale=2.0)
    lengths = [40, 0, 17, 1, 33]
    for row, length in zip(log_probs, lengths, strict=True):
        row[length:] = 1e6
    torch.set_num_threads(2)  # several items at a time
    try:
        states = decoder.extend([decoder.initial_state()] * 5, log_probs, torch.tensor(lengths))
    finally:
        torch.set_num_threads(1)
    for state, row, length in zip(states, log_probs, lengths, strict=True):
        assert everything(decoder, state) == everything(decoder, decode(decoder, row[:length]))


def test_a_state_that_was_extended_is_what_it_was(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    decoder = BeamDecoder(tokenizer, beam_size=8, lm=lm, alpha=0.7)
    state = decode(decoder, draw(30, 4))
    before = pickle.dumps(state)
    decoder.extend([state], draw(1, 30, 4, seed=1), torch.tensor([30]))
    decoder.best(state, 3, final=True)
    decoder.drop_stable(state, decoder.num_stable(state))
    assert pickle.dumps(state) == before


def test_what_is_stable_stays_and_can_be_dropped(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    decoder = BeamDecoder(tokenizer, beam_size=10, lm=lm, alpha=0.7, beta=0.9, hotwords={"ab": 1.0}, horizon_frames=60)
    log_probs = draw(1000, 4, scale=4.0)
    (whole,) = decoder.best(decode(decoder, log_probs), final=True)
    state, ids, frames, ends, sizes = decoder.initial_state(), [], [], [], []
    for first in range(0, 1000, 25):
        (state,) = decoder.extend([state], log_probs[None, first : first + 25], torch.tensor([25]))
        stable = decoder.num_stable(state)
        for hypothesis in decoder.best(state, 10):
            assert hypothesis.path.ids[:stable] == decoder.best(state)[0].path.ids[:stable]
        path = decoder.best(state)[0].path
        ids += path.ids[:stable]
        frames += path.frames[:stable]
        ends += path.ends[:stable]
        state = decoder.drop_stable(state, stable)
        assert decoder.num_stable(state) == 0
        sizes.append(len(state.nodes))
    (rest,) = decoder.best(state, final=True)
    assert ids + rest.path.ids == whole.path.ids
    assert frames + rest.path.frames == whole.path.frames
    assert ends + rest.path.ends == whole.path.ends
    assert rest.total == whole.total
    assert len(ids) > 300
    assert all(first < end <= following for first, end, following in zip(frames, ends, frames[1:], strict=False))
    assert max(sizes[5:]) < 400


def test_a_doubt_is_settled_at_the_horizon(tokenizer: CharacterTokenizer) -> None:
    """A tie that no later frame breaks would be kept for ever."""
    log_probs = torch.full((600, 4), -20.0)
    log_probs[1:, 0] = 0.0
    log_probs[0, 2], log_probs[0, 3] = math.log(0.51), math.log(0.49)
    open_ended = BeamDecoder(tokenizer, beam_size=4, horizon_frames=1000)
    assert open_ended.num_stable(decode(open_ended, log_probs[:300])) == 0
    bounded = BeamDecoder(tokenizer, beam_size=4, horizon_frames=128)
    (best,) = bounded.best(decode(bounded, log_probs), final=True)
    assert best.path.ids == [2]
    ids = {tuple(h.path.ids) for h in bounded.best(decode(bounded, log_probs), 4)}
    assert all(tokens[0] == 2 for tokens in ids)


def test_decided_tokens_stand_where_the_best_alignment_has_them(tokenizer: CharacterTokenizer) -> None:
    """Each token has a faint beginning long before it is clear; hypotheses hold both."""
    log_probs = torch.full((2000, 4), math.log(0.01))
    log_probs[:, 0] = math.log(0.97)
    random = np.random.default_rng(0)
    for number, frame in enumerate(range(30, 2000, 30)):
        token, early = 2 + number % 2, frame - int(random.integers(5, 25))
        log_probs[early, 0], log_probs[early, token] = math.log(0.78), math.log(0.2)
        log_probs[frame : frame + 2, 0], log_probs[frame : frame + 2, token] = math.log(0.02), math.log(0.96)
    decoder = BeamDecoder(tokenizer, beam_size=20, horizon_frames=64)
    (best,) = decoder.best(decode(decoder, log_probs), final=True)
    expected = viterbi(log_probs.numpy(), best.path.ids)
    assert len(best.path.ids) > 50
    assert best.path.frames == expected.frames
    assert best.path.ends == expected.ends
    assert best.path.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
    assert best.path.total == pytest.approx(expected.total, abs=1e-3)


def test_hotwords_help_while_they_are_being_said(tokenizer: CharacterTokenizer) -> None:
    log_probs = torch.tensor([[0.04, 0.01, 0.45, 0.5], [0.05, 0.05, 0.05, 0.85]]).log()  # a or b, then b
    plain, boosted = (BeamDecoder(tokenizer, hotwords=words) for words in ({}, {"ab": 3.0}))
    assert plain.best(decode(plain, log_probs[:1]))[0].path.ids == [3]
    assert boosted.best(decode(boosted, log_probs[:1]))[0].path.ids == [2]  # lent a third
    assert boosted.best(decode(boosted, log_probs), final=True)[0].path.ids == [2, 3]
    broken_off = decode(boosted, log_probs[:1])
    with_credit = boosted.best(broken_off)[0].total
    ended = [h for h in boosted.best(broken_off, 9, final=True) if h.path.ids == [2]]
    assert ended[0].total == pytest.approx(with_credit - 1.0) == pytest.approx(math.log(0.45))


def test_frames_that_allow_nothing_do_not_end_the_search(tokenizer: CharacterTokenizer) -> None:
    decoder = BeamDecoder(tokenizer, word_list=["a"])
    log_probs = torch.full((3, 4), -math.inf)
    log_probs[0, 2] = log_probs[1, 3] = log_probs[2, 0] = 0.0  # a, then b, which the list forbids
    (best,) = decoder.best(decode(decoder, log_probs), final=True)
    assert best.path.ids == [2]
    assert math.isfinite(best.total)


def test_a_word_that_is_not_whole_is_better_than_nothing(tokenizer: CharacterTokenizer) -> None:
    decoder = BeamDecoder(tokenizer, word_list=["ab"])
    log_probs = torch.full((1, 4), -math.inf)
    log_probs[0, 2] = 0.0
    assert decoder.best(decode(decoder, log_probs), final=True)[0].path.ids == [2]


def test_nothing_said(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    decoder = BeamDecoder(tokenizer, lm=lm, alpha=0.7)
    (best,) = decoder.best(decoder.initial_state(), final=True)
    assert best.path == ([], [], [], [], 0.0)
    assert best.total == pytest.approx(0.7 * LN_10 * lm.score([]))


def test_the_models_signs_are_not_words(lm: NgramModel) -> None:
    decoder = BeamDecoder(CharacterTokenizer(" abs", Text()), lm=lm, word_list=lm.words)
    assert one_frame(decoder, 0.2, 0.2, 0.2, 0.2, 0.2) == {(), (1,), (2,), (3,)}  # <s>, normalised, would be s


def test_wrong_arguments(tokenizer: CharacterTokenizer, lm: NgramModel) -> None:
    with pytest.raises(ConfigError, match="hotwords: got 'xyz'"):
        BeamDecoder(tokenizer, hotwords={"xyz": 1.0})
    with pytest.raises(ConfigError, match="no word, 'xyz' for one, can be spelled"):
        BeamDecoder(tokenizer, word_list=["xyz"])
    with pytest.raises(ConfigError, match="no word, 'a' for one, can be spelled"):
        BeamDecoder(CharacterTokenizer(" XY", Text(case="upper")), lm=lm)
    with pytest.raises(ValueError, match="unit 'words'"):
        BeamDecoder(tokenizer, word_list=["a"], unit="characters")
    with pytest.raises(ValueError, match="alpha: got -1"):
        BeamDecoder(tokenizer, alpha=-1)
    with pytest.raises(ValueError, match="beam_size 0"):
        BeamDecoder(tokenizer, beam_size=0)
    decoder = BeamDecoder(tokenizer)
    for wrong in (math.nan, math.inf, 2.0):
        log_probs = draw(2, 4)
        log_probs[1, 2] = wrong
        with pytest.raises(DataError, match=f"got {wrong}, expected log-probabilities"):
            decode(decoder, log_probs)
    with pytest.raises(ValueError, match=r"hotwords .*inf"):
        BeamDecoder(tokenizer, hotwords={"a": math.inf})
    with pytest.raises(ValueError, match="got 5 tokens, expected 4"):
        decode(decoder, draw(2, 5))
    with pytest.raises(ValueError, match="got 1, expected a number from 0 to num_stable = 0"):
        decoder.drop_stable(decoder.initial_state(), 1)
