"""The options of each stack, read from `asr/stacks/*.py` without importing torch.

A stack's file holds its options (`Config`) beside the module that they build, and so it imports torch, which costs
more than a second; the configuration has to be validated before that. So `stack_config_class` parses the file and
executes only

* imports from `__future__`, `typing`, `pydantic` and `asr.config`,
* assignments at the top of the file to names that `Config` uses (`Merge = Literal["sum", "concat"]`),
* the class `Config` itself.

Whatever else `Config` needs cannot stand in it (docs/adr/0001-stack-config-without-torch.md).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from asr.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)
from asr.errors import ConfigError
from asr.messages import did_you_mean

__all__ = [
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "RecurrentOptions",
    "StackOptions",
    "names",
    "stack_config_class",
    "validate_stack",
]

STACKS_FOLDER = Path(__file__).parents[1] / "stacks"
IMPORTABLE = ("__future__", "typing", "pydantic", "asr.config")


class StackOptions(Section):
    """What every stack has; a stack's `Config` adds its own options.

    Instances may outlive this process (data workers, launchers), so they pickle as their values: the class itself
    is not importable by its name.
    """

    name: str = Field(description="name of a file in asr/stacks/")
    num_layers: PositiveInt = 3
    hidden_size: PositiveInt = 256

    def __reduce__(self) -> tuple[Callable[[Any], StackOptions], tuple[dict[str, Any]]]:
        return validate_stack, (self.model_dump(),)


class RecurrentOptions(StackOptions):
    """What every stack of recurrent layers has."""

    bidirectional: bool = True
    merge: Literal["sum", "concat"] = Field("sum", description="how the two directions join; Deep Speech 2 sums")
    batch_norm: Literal["paper", "input", "none"] = Field(
        "paper",
        description="paper: on W h, before U h (Deep Speech 2, section 3.2); input: on each layer's input but the"
        " first, and on the last layer's output (deepspeech.pytorch)",
    )
    lookahead_frames: NonNegativeInt = Field(0, description="future frames of the row convolution; forward-only nets")
    residual: Literal["none", "identity", "projection"] = Field(
        "none",
        description="add a layer's input to its output (He et al. 2016): identity, where the sizes agree; projection:"
        " also where they do not, through a linear map",
    )
    projection_size: NonNegativeInt = Field(0, description="a linear map of each layer's output to so many; 0: none")
    dropout: Probability = Field(0.0, description="on each layer's output but the last one's")


def names() -> tuple[str, ...]:
    """Names of the stacks that there are: files in asr/stacks/, without base.py and private ones."""
    files = (path.stem for path in STACKS_FOLDER.glob("*.py"))
    return tuple(sorted(name for name in files if name != "base" and not name.startswith("_")))


@cache
def stack_config_class(name: str) -> type[StackOptions]:
    """Give `Config` of asr/stacks/NAME.py without importing that file.

    Raises:
        ConfigError: there is no such stack, or its `Config` needs more than this module's rule allows.
    """
    if name not in names():
        hint = did_you_mean(name, names())
        raise ConfigError(f"stack.name: got {name!r}, expected one of {', '.join(names())}{hint}")
    path = STACKS_FOLDER / f"{name}.py"
    # Pydantic looks annotations up in the module that the class names, so there has to be one. It stands beside the
    # real module `asr.stacks.NAME` and is not mistaken for it.
    module = ModuleType(f"{__name__}.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    code = ast.Module(_config_statements(ast.parse(path.read_text(encoding="utf-8"))), type_ignores=[])
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)  # noqa: S102 -- our own source file, the allowed part
        options = module.__dict__["Config"]
    except (KeyError, NameError) as error:
        raise ConfigError(_rule(path, repr(error))) from error
    if not issubclass(options, StackOptions):
        raise ConfigError(_rule(path, f"a Config that derives from {options.__bases__}"))
    try:
        options.model_rebuild()  # looks up the names in its annotations
    except NameError as error:
        raise ConfigError(_rule(path, repr(error))) from error
    return options


def validate_stack(values: Mapping[str, Any] | StackOptions) -> StackOptions:
    """Validate a stack's options by the class that their `name` picks.

    Raises:
        pydantic.ValidationError: each mistake at its place, so that the schema can put `stack.` in front.
    """
    if isinstance(values, StackOptions):  # also from the really imported twin of the class
        values = values.model_dump()
    if not isinstance(values, Mapping):
        raise _error((), "a mapping with a name", values)
    name = values.get("name")
    if name not in names():
        raise _error(("name",), f"one of {', '.join(names())}{did_you_mean(name, names())}", name)
    return stack_config_class(name).model_validate(dict(values))


def _config_statements(tree: ast.Module) -> list[ast.stmt]:
    """Pick the statements of a stack's file that `Config` is made of, in their order."""
    used: set[str] = set()
    picked: list[ast.stmt] = []
    for statement in reversed(tree.body):  # from the class up, so that an assignment's own needs are known
        match statement:
            case ast.ClassDef(name="Config"):
                needed = True
            case ast.ImportFrom(module=str(source), level=0):
                needed = source.startswith(tuple(f"{root}." for root in IMPORTABLE)) or source in IMPORTABLE
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                needed = target in used
            case _:
                needed = False
        if needed:
            picked.append(statement)
            used |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return picked[::-1]


def _rule(path: Path, got: str) -> str:
    return (
        f"{path}: got {got}, expected a class Config(StackOptions) made of typing, pydantic, asr.config and constants"
        " only (docs/adr/0001-stack-config-without-torch.md)"
    )


def _error(location: tuple[str, ...], expected: str, got: Any) -> ValidationError:
    kind = PydanticCustomError("stack", "Input should be {expected}", {"expected": expected})
    return ValidationError.from_exception_data("stack", [InitErrorDetails(type=kind, loc=location, input=got)])
