"""Validation of a composed configuration: all mistakes at once, each with its key, what was got, what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asr.config.options import names, stack_config_class
from asr.config.schema import Config
from asr.errors import ConfigError
from asr.messages import did_you_mean


def validate(values: Any, source: str, mistakes: Iterable[str] = (), groups: Iterable[str] = ()) -> Config:
    """Make a `Config` of nested mappings.

    Args:
        values: what was read or composed.
        source: file or command that the values come from, for the message.
        mistakes: those that were found before, to be reported together with the ones found here.
        groups: names that select presets; a misspelt one looks like an unknown key.

    Raises:
        ConfigError: lists every mistake.
    """
    mistakes = list(mistakes)
    config = None
    if isinstance(values, Mapping):
        try:
            config = Config.model_validate(values)
        except ValidationError as error:
            mistakes += [_describe(details, values, tuple(groups)) for details in error.errors(include_url=False)]
    else:
        mistakes.append(f"got {_show(values)}, expected a mapping of sections")
    if config is None or mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n".join([f"{count} in the configuration from {source}", *(f"  {m}" for m in mistakes)]))
    return config


def keys(section: type[BaseModel], stack: str) -> Iterator[str]:
    """Give every dotted key below `section`; `stack` names the one whose options are meant."""
    for name, field in section.model_fields.items():
        yield name
        below = stack_config_class(stack) if name == "stack" else field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from (f"{name}.{key}" for key in keys(below, stack))


def _describe(details: ErrorDetails, values: Mapping[str, Any], groups: tuple[str, ...]) -> str:
    location = ".".join(map(str, details["loc"]))
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return f"{location}: no such key{_nearest_key(details['loc'], values, groups)}"
    if details["type"] == "missing":
        return f"{location}: missing"
    expected = message.removeprefix("Input should be ")
    if expected == message:  # a sentence of our own validators, which says what was got
        return f"{location}: {message}"
    hint = did_you_mean(details["input"], re.findall(r"'([^']*)'", expected)) if "literal" in details["type"] else ""
    return f"{location}: got {_show(details['input'])}, expected {expected}{hint}"


def _nearest_key(location: tuple[int | str, ...], values: Mapping[str, Any], groups: tuple[str, ...]) -> str:
    """Hint at the nearest key of the same section, else at a key of that name elsewhere."""
    *path, word = (str(part) for part in location)
    section = _section_at(location[:-1], values)
    beside = [*(section.model_fields if section else ()), *(groups if not path else ())]
    if hint := did_you_mean(word, beside):
        return hint
    elsewhere = [key for key in keys(Config, _stack_name(values)) if key.rpartition(".")[2] == word]
    return f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""


def _section_at(location: Iterable[int | str], values: Mapping[str, Any]) -> type[BaseModel] | None:
    """Find the section at a place of the schema; list indices lead to the list's items."""
    section: Any = Config
    for part in location:
        if part == "stack" and section is Config:
            section = stack_config_class(_stack_name(values))
        elif isinstance(part, str):
            section = section.model_fields[part].annotation
        else:
            section = next(iter(get_args(section)), None)
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None


def _stack_name(values: Mapping[str, Any]) -> str:
    """Name of the configured stack, or the default one's if that is wrong."""
    stack = values.get("stack")
    name = stack.get("name") if isinstance(stack, Mapping) else None
    return name if name in names() else Config().stack.name


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
