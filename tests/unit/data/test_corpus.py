"""What of a corpus cannot be trained on is taken out and named."""

from pathlib import Path

from asr.config.schema import Text
from asr.data.corpus import Corpus, drop_unusable
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.text.tokenizer import build_tokenizer
from asr.types import Drop, Utterance
from tests.support.tones import RATE_HZ, write_corpus


def corpus_of(tmp_path: Path, texts: list[str]) -> Corpus:
    """One utterance of each text; all sound alike."""
    sung = write_corpus(tmp_path / "wav", ["abc"] * len(texts), "song")
    said = [Utterance(one.id, one.audio, text, one.seconds) for one, text in zip(sung, texts, strict=True)]
    write_shards(said, tmp_path / "train", sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"))
    return Corpus.open([tmp_path / "train"], RATE_HZ)


def dropped(corpus: Corpus, known: str) -> list[Drop]:
    """With a tokenizer of the characters in `known`."""
    tokenizer = build_tokenizer(Text(), [known])
    return drop_unusable(
        corpus, encode=tokenizer.encode, frame_count=lambda samples: samples // 160, min_seconds=0.1, max_seconds=9.0
    )


def test_a_text_of_which_normalising_leaves_nothing_is_empty(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["abc", "...", " ", ""])
    drops = dropped(corpus, "abc")
    assert [(drop.id, drop.reason) for drop in drops] == [(f"song-00{i}", "empty_text") for i in (1, 2, 3)]
    assert drops[0].detail == "the transcript '...' is empty once normalised"
    assert (corpus.texts, corpus.num_tokens.tolist()) == (["abc"], [3])


def test_characters_that_the_tokens_lack(tmp_path: Path) -> None:
    """As where a run is resumed, which keeps its tokens, with transcripts that have changed."""
    corpus = corpus_of(tmp_path, ["abc", "abq", "cab"])
    (drop,) = dropped(corpus, "abc")
    assert (drop.id, drop.reason, drop.source) == ("song-001", "unknown_characters", "train")
    assert drop.detail.startswith("'q' (U+0071, LATIN SMALL LETTER Q) is not among the model's characters")
    assert (corpus.texts, corpus.num_tokens.tolist()) == (["abc", "cab"], [3, 3])
