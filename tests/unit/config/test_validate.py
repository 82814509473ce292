"""Mistakes in a configuration: all at once, each with its key, what was got, what was expected, and a hint."""

import pickle
from pathlib import Path

import pytest

from asr.config import Config, load, presets, validate
from asr.config.options import names
from asr.errors import ConfigError

RECIPE = Path("recipes/an4")


def mistakes(*overrides: str, recipe: Path = RECIPE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(recipe, overrides)
    return [line.strip() for line in str(caught.value).splitlines()]


def test_all_mistakes_are_reported_at_once() -> None:
    first, *others = mistakes(
        "modle=ds2_5x800",
        "stack=gru_streamin",
        "stack.hidden_sise=3",
        "optim.name=adamv",
        "optim.warmup_steps=-1",
        "learning_rate=1",
        "trainer.precission=bf16",
        "data.train=[1]",
        "front_end.layers=[{channels: 0, tim_kernel: 3}]",
        "oops",
        "seed=1,2",
    )
    assert first.startswith("12 mistakes in the configuration from ")
    assert sorted(others) == [
        "data.train.0: got 1, expected a valid string",
        "front_end.layers.0.channels: got 0, expected greater than 0",
        "front_end.layers.0.tim_kernel: no such key; did you mean time_kernel?",
        "learning_rate: no such key; did you mean optim.learning_rate?",
        "modle: no such key; did you mean model?",
        "oops: expected section.key=value or group=option",
        "optim.name: got 'adamv', expected 'adamw' or 'sgd'; did you mean adamw?",
        "optim.warmup_steps: got -1, expected greater than or equal to 0",
        "seed=1,2: several values, which needs -m, for a sweep over them",
        "stack.hidden_sise: no such key; did you mean hidden_size?",
        f"stack: got 'gru_streamin', expected one of {', '.join(presets()['stack'])}; did you mean gru_streaming?",
        "trainer.precission: no such key; did you mean precision?",
    ]


def test_the_message_names_the_file_and_the_overrides() -> None:
    first, other = mistakes("seed=x")
    assert first == f"1 mistake in the configuration from {RECIPE.resolve()}/config.yaml seed=x"
    assert other.startswith("seed: got 'x', expected a valid integer")


def test_a_stack_that_does_not_exist_is_named_with_those_that_do() -> None:
    expected = f"stack.name: got 'grx', expected one of {', '.join(names())}; did you mean gru?"
    assert {"gru", "tcn"} < set(names())
    assert expected in mistakes("stack.name=grx")


def test_our_own_rules_say_what_they_got() -> None:
    assert any("kernels have to be odd" in line for line in mistakes("front_end.layers=[{time_kernel: 4}]"))
    lines = mistakes("front_end=conv1d_1", "front_end.layers.0.frequency_kernel=41")
    assert lines[1].startswith("front_end: conv1d spans all frequencies")


def test_values_of_the_wrong_shape() -> None:
    with pytest.raises(ConfigError, match=r"got \[1\], expected a mapping of sections"):
        validate([1], "here")
    with pytest.raises(ConfigError, match="stack: got 3, expected a mapping with a name"):
        validate({"stack": 3}, "here")
    with pytest.raises(ConfigError, match=r"optim\.learning_rate: got inf, expected a finite number"):
        validate({"optim": {"learning_rate": float("inf")}}, "here")


def test_values_that_only_look_right() -> None:
    path = "expected a path, in quotes where it looks like something else"
    expected = {
        "model=null": f"model: got None, expected one of {', '.join(presets()['model'])}",
        "trainer=5": "trainer: got 5, expected one of default, quick",
        "optim={name: sgd}": "optim: got {'name': 'sgd'}, expected one of adamw, ds2_sgd",
        "trainer.devices=true": "trainer.devices: got True, expected a number",
        "trainer.checkpoint_every_steps=true": "trainer.checkpoint_every_steps: got True, expected a number",
        "augment.gain_db=false": "augment.gain_db: got False, expected a number",
        "augment.speeds=[]": "augment.speeds: Tuple should have at least 1 item after validation, not 0",
        "optim.betas=[0.9,1.0]": "optim.betas.1: got 1.0, expected less than 1",
        f"seed={2**63}": f"seed: got {2**63}, expected less than or equal to {2**63 - 1}",
        "run_dir=": f"run_dir: got '', {path}",
        "data.root=1e5": f"data.root: got 100000.0, {path}",
        "init_from=true": f"init_from: got True, {path}",
    }
    assert sorted(mistakes(*expected)[1:]) == sorted(expected.values())


def test_paths_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Hydra could read them in quotes only."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SOMEWHERE", "/some")
    typed = {
        "/tmp/a=b": "/tmp/a=b",
        "/home/jos\u00e9/x": "/home/jos\u00e9/x",
        "/tmp/a (b)": "/tmp/a (b)",
        "it's (here)": "it's (here)",
        "(a\\": "(a\\",
        "'/tmp/a=b'": "/tmp/a=b",
        "~/x": "/home/me/x",
        "2024": "2024",
        "${oc.env:SOMEWHERE}/a=b": "/some/a=b",
    }
    assert {text: str(load(RECIPE, [f"run_dir={text}"]).run_dir) for text in typed} == typed
    assert load(RECIPE, ["text.language=\u00e9"]).text.language == "\u00e9"


def test_what_has_to_be_quoted_by_hand() -> None:
    (line,) = mistakes("data.train=[a=b]")[1:]
    assert line.startswith("data.train=[a=b]: expected section.key=value or group=option; what Hydra cannot read as it")
    assert load(RECIPE, ['data.train=["a=b"]']).data.train == ("a=b",)
    url = "http://host:80/more"  # the colons of a key have to be escaped
    escaped = [f"data.train=[{url}]", r"data.weights={http\://host\:80/more: 2}"]
    assert load(RECIPE, escaped).data.weights == {url: 2.0}


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - base\n  - _self_\nrecipe: [one,\n")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config\.yaml:5: "):
        load(tmp_path)


def test_a_folder_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml, expected a recipe's folder"):
        load(tmp_path)


def test_what_hydra_cannot_compose_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - base\n  - override /data: an5\n")
    with pytest.raises(ConfigError, match="Could not find 'data/an5'"):
        load(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "defaults:\n  - base\n  - override /data: an4\n  - _self_\nrecipe: ${nothing}\n"
    )
    with pytest.raises(ConfigError, match="nothing"):
        load(tmp_path, ["oops"])


def test_a_configuration_is_frozen_and_pickles() -> None:
    config = load(RECIPE)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="frozen"):
        config.stack.num_layers = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert config != Config()
