"""One file = one stack, found by its file name. `build` makes the one that the configuration names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from asr.config.options import StackOptions

if TYPE_CHECKING:  # so that asr.stacks itself does not import torch
    from asr.stacks.base import Stack


def build(config: StackOptions, input_size: int) -> Stack:
    """Make the stack of `config.name` for `input_size` features a frame."""
    module = importlib.import_module(f"asr.stacks.{config.name}")
    # The configuration's class is a twin of module.Config (docs/adr/0001-stack-config-without-torch.md).
    return module.build(module.Config.model_validate(config.model_dump()), input_size)
