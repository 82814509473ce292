"""Who is suspected, and how a transcript is laid over what the model hears."""

from pathlib import Path

import numpy as np
import pytest

from asr.checkpoint import save, write_index
from asr.data.corpus import Corpus, required_frames
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader
from asr.data.utterance_losses import KEY, UtteranceLosses
from asr.decode import suspects
from asr.decode.aligned_texts import aligned_lines
from asr.decode.recognizer import Recognizer
from asr.decode.suspects import compare, read_losses, typical_losses
from asr.errors import CheckpointError, DataError
from tests.support.align import best_path, small_checkpoint
from tests.support.range_server import range_server
from tests.support.tones import RATE_HZ, write_corpus


def test_typical_is_the_median_of_those_of_about_the_same_length() -> None:
    random = np.random.default_rng(0)
    lengths = random.permutation(np.repeat([1000, 2000, 4000], suspects.GROUP_UTTERANCES + 1))
    losses = random.exponential(1.0, len(lengths)) + lengths / 1000
    for length in (1000, 2000, 4000):
        losses[np.flatnonzero(lengths == length)[7]] = np.nan  # training never came to it
    typical = typical_losses(losses, lengths)
    assert (np.isnan(typical) == np.isnan(losses)).all()
    for length in (1000, 2000, 4000):
        group = (lengths == length) & ~np.isnan(losses)
        assert (typical[group] == np.median(losses[group])).all()
    few = typical_losses(np.array([1.0, np.nan, 2.0, 9.0]), np.array([1, 2, 3, 4]))
    assert few[[0, 2, 3]].tolist() == [2.0, 2.0, 2.0]
    assert np.isnan(typical_losses(np.array([np.nan]), np.array([1]))).all()


def test_contradiction_is_the_best_path_of_all_against_the_best_that_spells_the_text() -> None:
    recognizer = Recognizer(small_checkpoint(), "cpu")
    samples = 0.1 * np.random.default_rng(0).standard_normal(2400).astype(np.float32)  # 4 output frames
    hearing = compare(recognizer, samples, "So.")
    log_probs = recognizer.log_probs(samples).numpy()
    ids = recognizer.tokenizer.encode("so")
    assert len(log_probs) >= required_frames(ids)
    spelled, path = best_path(log_probs[:, [0, *ids]].astype(np.float64), [1, 2])
    assert hearing.text == "so"
    expected = (log_probs.max(1).astype(np.float64).sum() - spelled) / 2
    assert hearing.contradiction == pytest.approx(expected, abs=1e-4)
    best = [max(float(log_probs[t, ids[i]]) for t, token in enumerate(path) if token == i + 1) for i in range(2)]
    assert [token.log_prob for token in hearing.tokens] == pytest.approx(best, abs=1e-4)
    assert hearing.word_log_probs == pytest.approx((sum(best) / 2,), abs=1e-4)
    assert [token.text for token in hearing.tokens] == ["s", "o"]
    assert 0 <= hearing.tokens[0].start_seconds < hearing.tokens[0].end_seconds <= hearing.tokens[1].start_seconds


def test_what_is_heard_is_not_contradicted() -> None:
    recognizer = Recognizer(small_checkpoint(), "cpu")
    samples = 0.1 * np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    heard = recognizer.transcribe(samples).text
    assert heard
    hearing = compare(recognizer, samples, heard)
    assert hearing.heard == heard
    assert hearing.contradiction <= 0.5  # the tokens that were heard may hold spaces that the text has not
    with pytest.raises(DataError, match="the text needs"):
        compare(recognizer, samples[:1600], heard * 10)


def test_runs_without_losses_say_so(tmp_path: Path) -> None:
    made = small_checkpoint()
    parts = {"weights": made.model.state_dict(), "config": made.config, "tokenizer": made.tokenizer, "provenance": {}}
    save(tmp_path / "shipped", **parts)
    save(tmp_path / "former", **parts, trainer={"state_dict": {}})
    for name, message in (("shipped", "holds no trainer.pt"), ("former", "has no losses by utterance")):
        write_index(tmp_path, {"last": name})
        with pytest.raises(CheckpointError, match=f"{tmp_path / name}: {message}"):
            read_losses(tmp_path)


def test_runs_on_shards_behind_a_url(tmp_path: Path) -> None:
    sung = write_corpus(tmp_path / "wav", ["abc", "cab"], "song")
    folder = tmp_path / "served" / "songs"
    write_shards(sung, folder, sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"))
    made, run = small_checkpoint(), tmp_path / "run"
    with range_server(folder.parent) as server:
        losses = UtteranceLosses(Corpus([ShardReader(f"{server.url}/songs")], RATE_HZ))
        parts = {
            "weights": made.model.state_dict(),
            "config": made.config,
            "tokenizer": made.tokenizer,
            "provenance": {},
        }
        save(run / "step", **parts, trainer={KEY: losses.state_dict()})
        write_index(run, {"last": "step"})
        assert read_losses(run).corpus.texts == ["abc", "cab"]


def test_aligned_lines() -> None:
    """As jiwer shows an alignment; the log-probabilities stand below the transcript's words."""
    lines = aligned_lines("one two three five", "one too three four five", (-0.1, -7.25, 0.0, -0.5), 80)
    assert lines == [
        "REF:  one   two   three **** five",
        "HYP:  one   too   three four five",
        "            S           I",
        "log p -0.10 -7.25 0.00       -0.50",
    ]
    assert aligned_lines("one", "", (-9.0,), 80) == ["REF:  one", "HYP:  ***", "      D", "log p -9.00"]
    assert aligned_lines("one", "one", (), 80) == ["REF:  one", "HYP:  one"]


def test_aligned_lines_wrap() -> None:
    """A word stands in one line, and a wide character takes two columns."""
    lines = aligned_lines("alpha beta gamma", "alpha beta gamma", (-1.0, -1.0, -1.0), 17)
    assert lines == [
        "REF:  alpha beta",
        "HYP:  alpha beta",
        "log p -1.00 -1.00",
        "REF:  gamma",
        "HYP:  gamma",
        "log p -1.00",
    ]
    assert aligned_lines("\u4f60\u597d b", "b", (), 80) == ["REF:  \u4f60\u597d b", "HYP:  **** b", "      D"]
