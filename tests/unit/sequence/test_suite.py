"""The table over all recipes: who ran, what came out, what was missed; and the command of one recipe."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from asr.errors import ConfigError
from asr.sequence import command, suite
from asr.sequence.report import Result
from asr.sequence.settings import Claim, load_recipe

RECIPES = Path(__file__).parents[3] / "recipes" / "sequence"

YAML = """
task: adding
claims:
  quick: [{case: long, at_most: short, sanity: true}, {case: short, at_most: long, factor: 0.1}]
defaults:
  options: {length: 5, num_test: 50}
  stack: {name: gru, num_layers: 1, hidden_size: 4, bidirectional: false, batch_norm: none}
quick:
  short: {steps: 1, target: {at_least: 0.01}}
  long: {steps: 2, target: {at_most: 0.0}}
  other: {steps: 1}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes" / "small"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(YAML)
    (folder / "train.py").write_text((RECIPES / "adding" / "train.py").read_text())
    return folder.parent


def result(case: str = "gru", value: float = 0.5, seed: int = 1, passed: bool | None = True) -> Result:
    return Result(
        task="t", case=case, scale="quick", seed=seed, figure="error", value=value, chance=None, target="<= 1",
        passed=passed, paper="", parameters=1000, steps=10, seconds=2.0, curve=[[1, 2.0, 3.0]],
    )  # fmt: skip


def test_a_run_writes_what_it_did(recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(recipes / "small", ["stack=short", f"run_dir={tmp_path / 'run'}", "seed=3"])
    assert "small short, seed 3: mean squared error" in capsys.readouterr().out
    values = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (values["case"], values["seed"], values["steps"], values["passed"]) == ("short", 3, 1, True)
    assert values["settings"]["options"]["length"] == 5
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not command.run(recipes / "small", ["stack=long", f"run_dir={tmp_path / 'run'}"])


def test_a_wrong_option_of_the_task_is_named(recipes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.lenth"):
        command.run(recipes / "small", ["options.lenth=3", f"run_dir={tmp_path / 'run'}"])


def test_all_runs_in_processes_and_one_missed_target_fails(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--folder", str(tmp_path / "runs"), "--jobs", "2", "--sanity"]
    assert not suite.run(recipes, arguments)
    said = capsys.readouterr().out
    assert "2 runs, " in said  # the two that the sanity claim compares
    assert "| small | long | " in said
    assert "MISSED" in said
    assert "long <= short" in said
    assert "0.1 x" not in said  # not a claim of --sanity
    assert (tmp_path / "runs/small/quick/long-1/result.json").exists()


def test_a_run_that_fails_is_told_and_counted(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not suite.run(recipes, ["--folder", str(tmp_path / "runs"), "--sanity", "--set", "options.length=1"])
    said = capsys.readouterr().out
    assert "2 runs failed" in said
    assert "options.length" in said


def test_cases_can_be_chosen_with_the_claims_that_compare_them(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.run(recipes, ["small/long", "small/other", "--folder", str(tmp_path / "runs")])
    said = capsys.readouterr().out
    assert "| small | long | " in said
    assert "| small | other | " in said
    assert "2 runs, 1 targets and claims missed" in said
    assert "claim |" not in said
    with pytest.raises(ConfigError, match=r"got small/lon, expected .*; did you mean long"):
        suite.run(recipes, ["small/lon"])


def test_a_run_that_is_cut_short_is_not_judged(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stack=long", "steps=100000", "seconds=0.2", f"run_dir={tmp_path / 'run'}"]
    assert command.run(recipes / "small", arguments)
    assert "(target <= 0: not judged)" in capsys.readouterr().out
    short = Result.read(tmp_path / "run" / "result.json")
    assert short.cut_short
    assert short.passed is None
    assert short.curve[-1][0] == short.steps < 100_000
    lines = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [list(line.values()) for line in lines] == short.curve
    assert set(lines[0]) == {"updates", "loss", "mean squared error"}
    assert "| cut short, of 100,000 updates |" in list(suite.table([short]))[2]
    claims = {"small": [Claim(case="long", at_most="short", margin=1e9)]}
    assert not next(suite.check_claims(claims, [short, replace(short, case="short", cut_short=False)]))[-1]


def test_unknown_tasks_and_empty_scales_are_said(recipes: Path) -> None:
    with pytest.raises(ConfigError, match="got 'smal', expected one of small; did you mean small"):
        suite.run(recipes, ["smal"])
    with pytest.raises(ConfigError, match="--scale full: no case"):
        suite.run(recipes, ["--scale", "full"])


def test_seeds_are_averaged_in_the_table() -> None:
    runs = [result(value=v, seed=i, passed=p) for i, (v, p) in enumerate([(1.0, True), (2.0, False), (3.0, False)])]
    row = list(suite.table(runs))[2]
    assert "error 2 (sd 1 of 3)" in row
    assert "1 of 3 met" in row


def test_claims_compare_means_and_a_case_without_a_result_breaks_them() -> None:
    runs = [result("a", 1.0), result("a", 3.0, seed=2), result("b", 1.9)]
    claims = {"t": [Claim(case="a", at_least="b"), Claim(case="a", at_most="b"), Claim(case="a", at_most="c")]}
    assert [(value, holds) for _, _, value, _, holds in suite.check_claims(claims, runs)] == [
        (2.0, True),
        (2.0, False),
        (2.0, False),
    ]


def test_results_survive_their_file_even_when_not_finite(tmp_path: Path) -> None:
    before = result(value=math.inf)
    before.write(tmp_path)
    assert Result.read(tmp_path / "result.json") == before


def test_every_recipe_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [path.parent for path in RECIPES.glob("*/config.yaml")]
    assert folders
    assert suite.run(RECIPES, ["--check"])
    assert len(capsys.readouterr().out.splitlines()) == len(folders)
    for folder in folders:
        assert (folder / "train.py").read_text().count("\n") <= 20
        assert load_recipe(folder).quick, folder
