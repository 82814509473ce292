"""Every stack learns a small version of a sequence task: the `ci` cases of the sequence recipes."""

from pathlib import Path

import pytest

from asr.config.options import names
from asr.sequence import command
from asr.sequence.report import Result
from asr.sequence.settings import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "sequence"
CASES = [
    (path.parent.name, case) for path in sorted(RECIPES.glob("*/config.yaml")) for case in load_recipe(path.parent).ci
]


def test_every_stack_has_a_case() -> None:
    stacks = {load_recipe(RECIPES / recipe).ci[case].stack for recipe, case in CASES}
    assert {stack.name for stack in stacks if stack is not None} == set(names())


@pytest.mark.parametrize(("recipe", "case"), CASES, ids=["-".join(case) for case in CASES])
def test_a_stack_learns(recipe: str, case: str, tmp_path: Path) -> None:
    met = command.run(RECIPES / recipe, [f"stack={case}", "scale=ci", f"run_dir={tmp_path}"])
    result = Result.read(tmp_path / "result.json")
    assert result.target, "a case without a target cannot fail"
    assert met, str(result)
