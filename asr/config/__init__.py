"""The configuration: Hydra composes it, one pydantic schema validates it, and none of that imports torch."""

from asr.config.load import load, run_recipe
from asr.config.options import StackOptions, stack_config_class
from asr.config.presets import conf_folder, presets
from asr.config.schema import Config
from asr.config.text import from_yaml, to_yaml
from asr.config.validate import validate

__all__ = [
    "Config",
    "StackOptions",
    "conf_folder",
    "from_yaml",
    "load",
    "presets",
    "run_recipe",
    "stack_config_class",
    "to_yaml",
    "validate",
]
