"""Presets: every one composes with every recipe, and those of a paper carry its figures."""

from pathlib import Path

import pytest

from asr.config import Config, conf_folder, from_yaml, load, presets, to_yaml
from asr.config.check import every_preset

RECIPES = sorted(path.parent for path in Path("recipes").glob("*/config.yaml"))
GROUPS = {"augment", "data", "features", "front_end", "model", "optim", "stack", "trainer"}


def test_there_are_recipes_and_presets() -> None:
    assert {path.name for path in RECIPES} >= {"an4", "librispeech"}
    assert set(presets()) >= GROUPS
    assert sum(map(len, presets().values())) >= 30


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_preset_composes(recipe: Path) -> None:
    results = dict(every_preset(recipe))
    assert len(results) == sum(map(len, presets(recipe).values()))
    assert all(isinstance(result, Config) for result in results.values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_model_composes_with_every_stack(recipe: Path) -> None:
    models, stacks = presets(recipe)["model"], presets(recipe)["stack"]
    assert len(models) >= 6
    assert len(stacks) >= 14
    for model in models:
        own = load(recipe, [f"model={model}"])
        for stack in stacks:
            swapped = load(recipe, [f"model={model}", f"stack={stack}"])
            assert swapped.stack.num_layers == own.stack.num_layers
            assert swapped.stack.hidden_size == own.stack.hidden_size


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_yaml_holds_everything(recipe: Path) -> None:
    config = load(recipe, ["stack=gru_streaming", "optim.learning_rate=1e-5", "data.root='/a b/c'", "text.language=no"])
    assert config.text.language == "no"
    assert from_yaml(to_yaml(config), "text") == config


def test_a_preset_says_what_it_is_and_leaves_nothing_to_it() -> None:
    files = sorted(conf_folder().rglob("*.yaml"))
    assert len(files) >= 31
    for path in files:
        lines = path.read_text().splitlines()
        assert lines[lines[0] == "# @package _global_"].startswith("# "), path


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_presets(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "defaults:\n  - base\n  - override /data: an4\n  - _self_\ntrainer: {max_epochs: 7}\n"
    )
    assert load(tmp_path).trainer.max_epochs == 7
    assert load(tmp_path, ["model=ds2_5x800"]).trainer.max_epochs == 7
    assert load(tmp_path, ["trainer=quick", "trainer.max_epochs=9"]).trainer.max_epochs == 9


def test_a_recipe_can_have_presets_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - base\n  - override /data: mine\n  - _self_\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("corpus: mine\n")
    assert load(tmp_path).data.corpus == "mine"
    assert presets(tmp_path)["data"] == tuple(sorted(["mine", *presets()["data"]]))


def test_embedded_data_bring_a_small_model_and_the_command_line_still_wins() -> None:
    small = load(Path("recipes/librispeech"), ["data=embedded"])
    assert small.stack == load(Path("recipes/librispeech"), ["model=small"]).stack
    modern = load(Path("recipes/librispeech"), ["data=embedded", "model=modern"])
    assert modern.stack == load(Path("recipes/librispeech")).stack
    assert modern.data.corpus == "embedded"


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [  # table 4 of the paper: channels, (frequency, time) kernel, (frequency, time) stride
        ("conv1d_1", "conv1d", [(1280, (1, 11), (1, 2))]),
        ("conv1d_2", "conv1d", [(640, (1, 5), (1, 1)), (640, (1, 5), (1, 2))]),
        ("conv1d_3", "conv1d", [(512, (1, 5), (1, 1)), (512, (1, 5), (1, 1)), (512, (1, 5), (1, 2))]),
        ("conv2d_1", "conv2d", [(32, (41, 11), (2, 2))]),
        ("conv2d_2", "conv2d", [(32, (41, 11), (2, 2)), (32, (21, 11), (2, 1))]),
        ("conv2d_3", "conv2d", [(32, (41, 11), (2, 2)), (32, (21, 11), (2, 1)), (96, (21, 11), (2, 1))]),
    ],
)
def test_front_ends_are_those_of_deep_speech_2(name: str, kind: str, layers: list[object]) -> None:
    front_end = load(Path("recipes/librispeech"), [f"front_end={name}"]).front_end
    assert front_end.kind == kind
    assert front_end.clip == 20
    assert layers == [
        (x.channels, (x.frequency_kernel, x.time_kernel), (x.frequency_stride, x.time_stride)) for x in front_end.layers
    ]


@pytest.mark.parametrize(
    ("name", "num_layers", "hidden_size", "num_convolutions", "lookahead_frames"),
    [
        ("ds2_5x800", 5, 800, 2, 0),
        ("ds2_5x800_streaming", 5, 800, 2, 20),
        ("ds2_3x2560_streaming", 3, 2560, 2, 80),
        ("ds2_7x1760", 7, 1760, 3, 0),
    ],
)
def test_models_are_those_of_deep_speech_2(
    name: str, num_layers: int, hidden_size: int, num_convolutions: int, lookahead_frames: int
) -> None:
    config = load(Path("recipes/librispeech"), [f"model={name}"])
    stack = config.stack.model_dump()
    assert (stack["name"], stack["num_layers"], stack["hidden_size"]) == ("gru", num_layers, hidden_size)
    assert (stack["bidirectional"], stack["lookahead_frames"]) == (not lookahead_frames, lookahead_frames)
    assert (stack["merge"], stack["batch_norm"]) == ("sum", "paper")
    assert len(config.front_end.layers) == num_convolutions
    assert config.features.kind == "log_spectrogram"
    assert (config.features.window_seconds, config.features.hop_seconds) == (0.020, 0.010)
    assert (config.optim.name, config.optim.momentum, config.optim.schedule) == ("sgd", 0.99, "anneal")
    assert (config.optim.anneal_factor, config.optim.warmup_steps) == (1.2, 0)
    assert (config.data.max_batch_items, config.data.sorta_grad, config.trainer.max_epochs) == (512, True, 20)
    # The paper's utterances have 76 characters on average, and its loss is not divided by them.
    assert 1e-4 <= config.optim.learning_rate / 76 <= 6e-4
    assert config.optim.gradient_clip * 76 == pytest.approx(400, rel=0.01)
