"""A stack's options are read from its source, by the rule of docs/adr/0001-stack-config-without-torch.md."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asr.config import Config, options
from asr.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of stacks in place of asr/stacks/."""
    monkeypatch.setattr(options, "STACKS_FOLDER", tmp_path)
    options.stack_config_class.cache_clear()
    yield tmp_path
    options.stack_config_class.cache_clear()


def test_the_class_has_the_fields_of_the_imported_one() -> None:
    assert options.names()
    for name in options.names():
        imported: Any = importlib.import_module(f"asr.stacks.{name}").Config
        read = options.stack_config_class(name)
        assert read.model_json_schema() == imported.model_json_schema()
        assert issubclass(read, options.StackOptions)


def test_an_instance_of_the_imported_class_is_taken() -> None:
    imported: Any = importlib.import_module("asr.stacks.gru").Config
    config = Config(stack=imported(name="gru", num_layers=2, hidden_size=7, lookahead_frames=3))
    assert config.stack.model_dump()["lookahead_frames"] == 3
    assert Config.model_validate(config.model_dump()) == config


def test_imports_of_torch_and_what_config_does_not_use_are_not_executed(folder: Path) -> None:
    (folder / "tiny.py").write_text(
        "from __future__ import annotations\n"
        "import torch_that_is_not_there\n"
        "from torch_that_is_not_there import nn\n"
        "from typing import Literal, TypeAlias\n"
        "from asr.config.options import StackOptions\n"
        "Unit: TypeAlias = Literal['a', 'b']\n"
        "Units = tuple[Unit, ...]\n"
        "TABLE = nn.missing\n"
        "class Config(StackOptions):\n"
        "    units: Units = ('a',)\n"
        "class Module(nn.Module):\n"
        "    pass\n"
    )
    (folder / "base.py").touch()
    (folder / "__init__.py").touch()
    assert options.names() == ("tiny",)
    stack = options.validate_stack({"name": "tiny", "num_layers": 1, "hidden_size": 2, "units": ["b"]})
    assert stack.model_dump() == {"name": "tiny", "num_layers": 1, "hidden_size": 2, "units": ("b",)}
    with pytest.raises(ValidationError, match=r"units\.0"):
        options.validate_stack({"name": "tiny", "num_layers": 1, "hidden_size": 2, "units": ["c"]})


@pytest.mark.parametrize(
    "source",
    [
        "class Config(StackOptions):\n    kind: torch.dtype\n",
        "class Config(StackOptions):\n    size: int = helper()\n",
        "class Options(StackOptions):\n    pass\n",
        "class Config:\n    pass\n",
    ],
)
def test_a_file_that_breaks_the_rule_is_named(folder: Path, source: str) -> None:
    imports = "from __future__ import annotations\nimport torch\nfrom asr.config.options import StackOptions\n"
    (folder / "broken.py").write_text(imports + source)
    with pytest.raises(ConfigError, match=rf"{folder}/broken\.py: got .*, expected"):
        options.stack_config_class("broken")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got 'gruu', expected one of .*gru.*; did you mean gru\?"):
        options.stack_config_class("gruu")
