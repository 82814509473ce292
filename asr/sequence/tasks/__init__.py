"""One file = one task, found by its file name: `Options`, what can be set, and `build(options, data)`, the task."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from asr.config.fields import Section
from asr.errors import ConfigError
from asr.messages import did_you_mean
from asr.sequence.settings import Case, describe_mistakes
from asr.sequence.task import Task


def names() -> tuple[str, ...]:
    """Names of the tasks that there are."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def build(name: str, case: Case, source: str) -> Task:
    """Make the task `name` with the case's options.

    Raises:
        ConfigError: there is no such task, or an option is wrong.
    """
    return _module(name, source).build(check_options(name, case, source), case.data)


def check_options(name: str, case: Case, source: str) -> Section:
    """The case's options, validated by the task `name`.

    Raises:
        ConfigError: there is no such task, or an option is wrong.
    """
    with describe_mistakes(source, "options."):
        return _module(name, source).Options.model_validate(case.options)


def _module(name: str, source: str) -> Any:
    if name not in names():
        hint = did_you_mean(name, names())
        raise ConfigError(f"{source}: task: got {name!r}, expected one of {', '.join(names())}{hint}")
    return importlib.import_module(f"asr.sequence.tasks.{name}")
