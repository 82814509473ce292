"""One file = one task, found by its file name: `Options`, what can be set, and `build(options, data)`, the task.

A task that does not train as the others do may also name the case's settings that mean nothing to it, as
`UNUSED_SETTINGS`, and those of which it knows one value only, as `FIXED_SETTINGS`; to give another is an error.
"""

from __future__ import annotations

import importlib
from operator import attrgetter
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
        ConfigError: there is no such task, an option is wrong, or a setting would be ignored.
    """
    task, defaults = _module(name, source), Case.model_validate({})
    for key in getattr(task, "UNUSED_SETTINGS", ()):
        value, default = attrgetter(key)(case), attrgetter(key)(defaults)
        if value != default:
            raise ConfigError(f"{source}: {key}: got {value!r}, but the task {name} does not use it; leave it out")
    for key, only in getattr(task, "FIXED_SETTINGS", {}).items():
        value = attrgetter(key)(case)
        if value != only:
            raise ConfigError(f"{source}: {key}: got {value!r}, but the task {name} knows {only!r} only")
    with describe_mistakes(source, "options."):
        return task.Options.model_validate(case.options)


def _module(name: str, source: str) -> Any:
    if name not in names():
        hint = did_you_mean(name, names())
        raise ConfigError(f"{source}: task: got {name!r}, expected one of {', '.join(names())}{hint}")
    return importlib.import_module(f"asr.sequence.tasks.{name}")
