"""Cases, their defaults, and the command line on top."""

from pathlib import Path

import pytest

from asr.errors import ConfigError
from asr.sequence.settings import Claim, Target, load_case, load_recipe

YAML = """
task: adding
claims: {quick: [{case: gru, at_most: rnn, factor: 0.5}]}
defaults: {batch_size: 8, optim: {learning_rate: 0.5}, stack: {name: gru, hidden_size: 7, bidirectional: false}}
quick:
  gru: {steps: 3, options: {length: 9}, target: {at_most: 0.1}, paper: so much}
  rnn: {stack: {name: rnn, hidden_size: 5}}
full:
  gru: {steps: 300}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(YAML)
    return tmp_path


def test_a_case_has_the_defaults_below_its_own_values(folder: Path) -> None:
    _, scale, name, case = load_case(folder, [])
    assert (scale, name, case.steps, case.batch_size, case.optim.learning_rate) == ("quick", "gru", 3, 8, 0.5)
    assert case.stack is not None
    assert case.stack.hidden_size == 7
    assert case.options == {"length": 9}


def test_another_stack_of_a_case_takes_the_place_of_the_whole(folder: Path) -> None:
    case = load_recipe(folder).quick["rnn"]
    assert case.stack is not None
    assert (case.stack.name, case.stack.hidden_size) == ("rnn", 5)
    assert case.stack.bidirectional is True  # type: ignore[attr-defined] -- rnn's default, not the gru's value


def test_the_command_line_chooses_and_changes(folder: Path) -> None:
    arguments = ["scale=full", "stack=gru", "optim.learning_rate=1e-3", "stack.num_layers=2", "seed=4"]
    for order in (arguments, arguments[::-1]):
        _, scale, name, case = load_case(folder, order)
        assert (scale, name, case.steps, case.seed, case.optim.learning_rate) == ("full", "gru", 300, 4, 1e-3)
        assert case.stack is not None
        assert (case.stack.num_layers, case.stack.hidden_size) == (2, 7)


def test_a_stack_without_a_case_takes_the_first_ones_place_and_target(folder: Path) -> None:
    _, _, name, case = load_case(folder, ["stack=tcn", "stack.kernel_size=3"])
    assert name == "tcn"
    assert case.stack is not None
    assert (case.stack.name, case.stack.hidden_size, case.stack.kernel_size) == ("tcn", 7, 3)  # type: ignore[attr-defined]
    assert case.target == Target(at_most=0.1)
    assert case.paper == ""  # what was published of another stack is not this one's


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("stack=lstn", "stack: got 'lstn', expected one of gru, rnn; did you mean lstm?"),
        ("scale=ful", "scale: got 'ful', expected one of quick, full; did you mean full?"),
        ("stepz=3", "quick.gru.stepz"),
        ("optim.learning_rate=fast", "quick.gru.optim.learning_rate.*'fast'"),
        ("stack.hiden_size=3", "quick.gru.stack.hiden_size"),
        ("gru", "got 'gru', expected key=value"),
    ],
)
def test_mistakes_name_the_key_and_what_was_got(folder: Path, argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_case(folder, [argument])


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "config.yaml").write_text("task: [")
    with pytest.raises(ConfigError, match=r"config\.yaml:1"):
        load_recipe(tmp_path)
    (tmp_path / "config.yaml").write_text(YAML.replace("at_most: rnn", "at_most: lstm"))
    with pytest.raises(ConfigError, match="there is no case 'lstm' under quick"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("value", "holds"), [(0.05, False), (0.1, True), (0.15, True), (0.2, True), (0.25, False), (float("nan"), False)]
)
def test_a_target_is_kept_within_its_bounds(value: float, holds: bool) -> None:
    assert Target(at_least=0.1, at_most=0.2).holds(value) is holds


def test_a_target_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at_most, at_least"):
        Target()


def test_a_claim_compares_with_factor_and_margin() -> None:
    below = Claim(case="a", at_most="b", factor=0.1, margin=0.5)
    assert below.holds(0.6, 1.0)
    assert not below.holds(0.61, 1.0)
    above = Claim(case="a", at_least="b")
    assert above.holds(1.0, 1.0)
    assert not above.holds(0.9, 1.0)
    assert not above.holds(float("nan"), 1.0)
    with pytest.raises(ValueError, match="either"):
        Claim(case="a", at_least="b", at_most="c")
