from collections.abc import Callable
from typing import Any

import numba
import pytest

from asr.compiled import before_compiling, compiled


def test_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: Any) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: lambda: "compiled"

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(abs)() == "compiled"


def test_the_first_compilation_is_announced() -> None:
    said: list[str] = []
    before_compiling(lambda: said.append("compiling"))
    one, other = numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)
    assert not said
    assert one(1) == 2
    assert said == ["compiling"]
    assert other(1) == 3
    assert said == ["compiling"]
