from collections.abc import Callable
from typing import Any

import numba
import pytest

from asr.compiled import compiled


def test_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: Any) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: lambda: "compiled"

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(abs)() == "compiled"
