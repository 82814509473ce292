"""The configuration as YAML text: what a run folder and a checkpoint hold."""

from __future__ import annotations

from typing import Any

import yaml

from asr.config.schema import Config
from asr.config.validate import validate
from asr.errors import ConfigError


def to_yaml(config: Config) -> str:
    """Write every setting, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def from_yaml(text: str, source: str) -> Config:
    """Read what `to_yaml` wrote; nothing in the text is executed.

    Args:
        text: YAML.
        source: where the text comes from, for messages.

    Raises:
        ConfigError: broken YAML, or a key or value that this version does not know.
    """
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(yaml_mistake(error, source)) from None
    return validate(values, source)


def yaml_mistake(error: yaml.YAMLError, source: str) -> str:
    """Say where YAML is broken: `FILE:LINE: what is wrong`."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        name = source if mark.name.startswith("<") else mark.name
        return f"{name}:{mark.line + 1}: {error.problem}{f' ({error.context})' if error.context else ''}"
    return f"{source}: {error}"
