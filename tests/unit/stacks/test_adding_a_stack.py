"""docs/adding-a-stack.md does what it says: its stack, added to a copy of this checkout, keeps the contract."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PARTS = ["asr", "conf", "docs", "recipes", "tests", "pyproject.toml"]
DOCUMENT = (ROOT / "docs" / "adding-a-stack.md").read_text()
FILES: dict[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^    ((?:asr|python) .*)$", DOCUMENT, re.MULTILINE)
STACK = "asr/stacks/gated_conv.py"
BROKEN = {
    # name: (what the document has, what stands there instead, contracts that this breaks)
    "unmasked": ("zero_padding(out, lengths)", "out", {"shape_and_zero_padding", "padding_garbage_is_irrelevant"}),
    "forgetful": ("frames[:, chunk.shape[1] :]", "before", {"streaming_equals_offline_or_says_why_not"}),
    "boastful": ("num_layers * self.kept_frames", "99", {"memory_is_what_it_says"}),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout with the document's files in it."""
    for part in map(ROOT.joinpath, PARTS):
        if part.is_dir():
            shutil.copytree(part, tmp_path / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(part, tmp_path)
    for name, text in FILES.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copy, whatever this run of pytest was given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONPATH"))}
    environment |= {"COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_document_has_all_of_it() -> None:
    assert list(FILES) == [STACK, "tests/unit/stacks/test_gated_conv.py", "conf/stack/gated_conv.yaml"]
    assert len(COMMANDS) >= 5


def test_the_contract_holds_for_the_example_and_not_for_broken_ones(checkout: Path) -> None:
    for name, (there, instead, _) in BROKEN.items():
        assert FILES[STACK].count(there) == 1
        (checkout / "asr" / "stacks" / f"{name}.py").write_text(FILES[STACK].replace(there, instead))
    (command,) = [command for command in COMMANDS if "pytest" in command]
    *words, selected = shlex.split(command)[1:]
    expression = " or ".join([selected, *BROKEN])
    done = run(checkout, *words, expression, "-p", "no:cacheprovider", "--junitxml=results.xml")

    results: dict[str, dict[str, set[str]]] = {}  # stack -> outcome -> contracts
    for case in ElementTree.parse(checkout / "results.xml").iter("testcase"):
        contract, _, label = case.get("name", "").removeprefix("test_").partition("[")
        stack = re.search(r"\b(gated_conv|unmasked|forgetful|boastful)\b", label)
        outcome = next((child.tag for child in case), "passed")
        results.setdefault(stack[1] if stack else "", {}).setdefault(outcome, set()).add(contract)
    assert results[""] == {"passed": {"equals_the_equation"}}, done.stdout
    assert results["gated_conv"].keys() == {"passed"}, done.stdout
    assert len(results["gated_conv"]["passed"]) >= 10
    assert {"batch_invariance", "streaming_equals_offline_or_says_why_not"} <= results["gated_conv"]["passed"]
    for name, (_, _, contracts) in BROKEN.items():
        assert contracts <= results[name]["failure"]
        assert "passed" in results[name]


def test_its_commands_do_what_it_says(checkout: Path) -> None:
    assert run(checkout, "-c", "import asr; print(asr.__file__)").stdout.startswith(str(checkout))

    alone, several = (shlex.split(command)[1:] for command in COMMANDS if command.startswith("asr stack"))
    shown = run(checkout, "-m", "asr", *alone).stdout
    assert f"```text\n{shown}```" in DOCUMENT
    assert run(checkout, "-m", "asr", *several).returncode == 0

    recipes = [re.fullmatch(r"python (recipes/\w+)/train.py (.*)", command) for command in COMMANDS]
    trainings = [(match[1], shlex.split(match[2])) for match in recipes if match]
    assert len(trainings) == 2
    for recipe, overrides in trainings:
        checked = run(checkout, "-m", "asr", "check", recipe, *overrides)
        assert "\n  name: gated_conv\n" in checked.stdout, checked.stderr

    assert run(checkout, "-m", "asr.config.json_schema").returncode == 0  # `make schema`
    assert "stack_gated_conv" in (checkout / "conf" / "schema.json").read_text()
