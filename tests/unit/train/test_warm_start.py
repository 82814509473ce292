"""What is taken from another model: tensors that fit, the head's rows by their tokens, and an honest report."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asr import checkpoint, model
from asr.config.schema import Config, Text
from asr.errors import CheckpointError, ConfigError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer, build_tokenizer
from asr.train.run import require_model
from asr.train.warm_start import Source, begin, load_fitting

STACK = {"name": "gru", "num_layers": 2, "hidden_size": 4}
SECTIONS: dict[str, Any] = {
    "features": {"num_mels": 8},
    "front_end": {"layers": [{"channels": 2, "time_kernel": 3, "frequency_kernel": 3}]},
    "stack": STACK,
}


def made(seed: int, texts: list[str], **sections: Any) -> tuple[SpeechModel, Config, Tokenizer]:
    """A model whose every tensor, running statistics too, is drawn from `seed`."""
    config = Config.model_validate(SECTIONS | sections)
    tokenizer = build_tokenizer(config.text, texts)
    speech_model = model.build(config, tokenizer.num_tokens)
    random = torch.Generator().manual_seed(seed)
    for tensor in speech_model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=random))
    return speech_model, config, tokenizer


def source(**sections: Any) -> Source:
    """One with the tokens a, b and e, and the space."""
    other, config, tokenizer = made(2, ["abe"], **sections)
    return Source(other.state_dict(), config, tokenizer)


def load(source: Source, texts: list[str], **sections: Any) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The tensors before, after, and the report."""
    speech_model, config, tokenizer = made(1, texts, **sections)
    before = {name: tensor.clone() for name, tensor in speech_model.state_dict().items()}
    report = load_fitting(speech_model, config, tokenizer, source)
    assert report is not None
    return before, speech_model.state_dict(), report


def test_the_same_model_is_loaded_whole() -> None:
    other = source()
    _, after, report = load(other, ["abe"])
    assert after.keys() == other.weights.keys()
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in after.items())
    total = sum(p.numel() for p in made(1, ["abe"])[0].parameters())
    assert report[0].startswith(f"loaded {total:,} of {total:,} parameters; front_end: ")
    assert not [line for line in report if "not loaded" in line]


def test_rows_of_the_head_go_by_the_text_of_their_tokens() -> None:
    other = source()
    before, after, report = load(other, ["bcd"])  # ids: blank, space, b, c, d; there: blank, space, a, b, e
    for name in ("head.linear.weight", "head.linear.bias"):
        expected = before[name].clone()
        for ours, theirs in ((0, 0), (1, 1), (2, 3)):
            expected[ours] = other.weights[name][theirs]
        assert torch.equal(after[name], expected)
    assert "head: 3 of 5 tokens, blank included, by their text" in report
    assert "head: tokens that are new: 'c' 'd'" in report
    assert "head: that model's tokens that are none here: 'a' 'e'" in report
    rows = other.weights["head.linear.weight"].shape[1] + 1
    assert f"head: {3 * rows} of {5 * rows}" in report[0]


def test_a_words_beginning_is_a_space() -> None:
    """Sentencepiece writes the space between words as another character."""
    texts = ["ab ba abba", "b a ab"]
    other, config, tokenizer = made(2, texts, text={"tokenizer": "unigram", "vocabulary_size": 6})
    _, after, _ = load(Source(other.state_dict(), config, tokenizer), ["ab"])
    mark = tokenizer.pieces.index("\u2581")
    assert torch.equal(after["head.linear.weight"][1], other.head.linear.weight[mark])
    assert torch.equal(after["head.linear.weight"][2], other.head.linear.weight[tokenizer.pieces.index("a")])


@pytest.mark.parametrize("layers", [1, 3])
def test_another_depth(layers: int) -> None:
    other = source()
    before, after, report = load(other, ["abe"], stack=STACK | {"num_layers": layers})
    extra = [name for name in after if name not in other.weights]
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if name in extra else other.weights[name])
    assert bool(extra) == (layers == 3)
    if extra:
        count = sum(
            p.numel() for n, p in made(1, ["abe"], stack=STACK | {"num_layers": 3})[0].named_parameters() if n in extra
        )
        assert f"not loaded: stack.layers.2: that model has none ({count:,} parameters)" in report
    assert ("without a place here: stack.layers.1" in report) == (layers == 1)


def test_other_shapes_are_named() -> None:
    other = source()
    before, after, report = load(other, ["abe"], stack=STACK | {"hidden_size": 5})
    for name, tensor in after.items():
        fits = other.weights[name].shape == tensor.shape and not name.startswith("head.")
        assert torch.equal(tensor, other.weights[name] if fits else before[name])
    assert "not loaded: head.linear: got 4 inputs, expected 5 (30 parameters)" in report
    name = "stack.layers.0.cell.recurrent"
    shapes = f"got {tuple(other.weights[name].shape)}, expected {tuple(after[name].shape)}"
    assert f"not loaded: {name}: {shapes} ({after[name].numel():,} parameters)" in report
    assert "settings that differ: stack.hidden_size: got 4, expected 5" in report


def test_another_kind_of_stack() -> None:
    """Dilated and plain GRU layers have the same cells; a TCN has nothing of theirs."""
    other = source(stack=STACK | {"name": "dilated"})
    before, after, report = load(other, ["abe"])
    alike = [n for n in after if n in other.weights and after[n].shape == other.weights[n].shape]
    assert "stack.layers.0.cell.recurrent" in alike
    for name, tensor in after.items():
        assert torch.equal(tensor, other.weights[name] if name in alike else before[name])
    assert "settings that differ: stack.name: got dilated, expected gru" in report

    before, after, report = load(other, ["abe"], stack={"name": "tcn"})
    assert all(torch.equal(after[n], before[n]) for n in after if n.startswith(("stack.", "head.")))
    assert all(torch.equal(after[n], other.weights[n]) for n in after if n.startswith(("front_end.", "features.")))


@pytest.mark.parametrize(
    "other", [{"features": {"num_mels": 8, "hop_seconds": 0.02}}, {"data": {"sample_rate_hz": 8000}}]
)
def test_statistics_of_other_features_stay(other: dict[str, Any]) -> None:
    before, after, report = load(source(**other), ["abe"])
    for name in ("features.normalization.mean", "features.normalization.std"):
        assert torch.equal(after[name], before[name])
    assert [
        line for line in report if line.startswith("features: mean and standard deviation of this training's data: ")
    ]


def saved(folder: Path, **sections: Any) -> Path:
    other, config, tokenizer = made(2, ["abe"], **sections)
    checkpoint.save(folder, weights=other.state_dict(), config=config, tokenizer=tokenizer, provenance={})
    return folder


def test_nothing_fits(tmp_path: Path) -> None:
    layers = [{"channels": 3, "time_kernel": 5, "frequency_kernel": 5}]
    folder = saved(
        tmp_path / "other", front_end={"layers": layers, "batch_norm": False}, stack=STACK | {"hidden_size": 5}
    )
    speech_model, config, tokenizer = made(
        1, ["abe"], front_end=SECTIONS["front_end"] | {"batch_norm": False}, stack={"name": "tcn"}, init_from=folder
    )
    with pytest.raises(ConfigError, match=r"init_from=.*other: nothing of that model fits"):
        begin(config, speech_model, tokenizer, None)


def test_provenance_names_it_also_after_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "other")
    speech_model, config, tokenizer = made(1, ["abe"], init_from=folder)
    origin = begin(config, speech_model, tokenizer, None)
    assert f"init_from: {folder}\n  loaded " in capsys.readouterr().out
    assert origin["init_from"]["checkpoint"] == str(folder)
    assert f"{origin['init_from']['weights_sha256']}  model.safetensors" in (folder / "SHA256SUMS").read_text()

    ours = tmp_path / "ours"
    checkpoint.save(ours, weights={}, config=config, tokenizer=tokenizer, provenance={"step": 1, **origin})
    before = [tensor.clone() for tensor in speech_model.state_dict().values()]
    assert begin(config.model_copy(update={"init_from": Path("gone")}), speech_model, tokenizer, ours) == origin
    assert all(map(torch.equal, before, speech_model.state_dict().values()))


def test_without_one_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech_model, config, tokenizer = made(1, ["abe"])
    assert begin(config, speech_model, tokenizer, None) == {}
    assert begin(config, speech_model, tokenizer, saved(tmp_path / "own")) == {}
    assert capsys.readouterr().out == ""


def test_damage_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "other")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        begin(made(1, ["abe"], init_from=folder)[1], *made(1, ["abe"])[::2], None)


def test_a_model_that_is_not_there_is_answered_first(tmp_path: Path) -> None:
    config = Config(init_from=tmp_path / "gone", text=Text())
    with pytest.raises(ConfigError, match=r"init_from: .*gone: no checkpoint here"):
        require_model(config, tmp_path / "run")
    resumed = config.model_copy(update={"resume": True})
    with pytest.raises(ConfigError, match=r"init_from: .*gone: no checkpoint here"):
        require_model(resumed, tmp_path / "run")
    checkpoint.write_index(tmp_path / "run", {"last": "checkpoints/step-1"})
    require_model(resumed, tmp_path / "run")
