"""What the schema and the stacks' options are both made of: the strict base class, bounded numbers, folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "BelowOne",
    "Folder",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "Section",
    "Seed",
]


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts among the whole numbers
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _folder(value: Any) -> Any:
    if type(value) is int:  # a name such as 2024
        value = str(value)
    if value == "" or not isinstance(value, str | Path):
        raise PydanticCustomError("folder", "Input should be a path, in quotes where it looks like something else")
    return os.path.expanduser(value)


_Number = BeforeValidator(_number)
PositiveInt = Annotated[int, Field(gt=0), _Number]
PositiveFloat = Annotated[float, Field(gt=0), _Number]
NonNegativeInt = Annotated[int, Field(ge=0), _Number]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1), _Number]  # of torch, in 64 bits
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False), _Number]
Probability = Annotated[float, Field(ge=0.0, le=1.0), _Number]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0), _Number]
Folder = Annotated[Path, BeforeValidator(_folder)]  # ~ is the user's home


class Section(BaseModel):
    """A part of the configuration: frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
