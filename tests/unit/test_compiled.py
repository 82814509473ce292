import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

import asr.compiled
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


@pytest.mark.parametrize("changed", ["_callee.py", "_caller.py"])
def test_a_change_in_what_is_called_compiles_anew(tmp_path: Path, changed: str) -> None:
    """Functions that call each other across files, in a copy of the package, each process compiling or loading."""
    package = tmp_path / "asr"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(asr.compiled.__file__, package)
    (package / "_callee.py").write_text("from asr.compiled import compiled\n@compiled\ndef one(x):\n    return x + 1\n")
    (package / "_caller.py").write_text(
        "from asr.compiled import compiled\nfrom asr._callee import one\n"
        "@compiled\ndef two(x):\n    return one(one(x)) + 0\n"
    )
    code = "from asr._caller import two; print(two(3), sum(two.stats.cache_hits.values()))"

    def run() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        ).stdout

    assert (run(), run()) == ("5 0\n", "5 1\n")
    file = package / changed
    file.write_text(file.read_text().replace("+ 1", "+ 10").replace("+ 0", "+ 18"))
    assert run() == "23 0\n"
