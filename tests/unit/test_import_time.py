"""What has to be quick is quick, and does not import what makes it slow."""

import resource
import subprocess
import sys

import pytest

TRIES = 5  # the best of them counts: caches may be cold


def seconds(*command: str) -> float:
    """Of work, user and system: what the clock shows on a machine with nothing else to do."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once() -> float:
        before = used()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=60)
        return used() - before

    return min(once() for _ in range(TRIES))


def test_import_is_quick() -> None:
    assert seconds("-c", "import asr") - seconds("-c", "pass") < 0.2


@pytest.mark.parametrize("command", [["--help"], ["decode", "--help"], ["check", "--help"]])
def test_help_is_quick(command: list[str]) -> None:
    assert seconds("-m", "asr", *command) < 0.5


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import asr", ["torch", "numpy", "pydantic", "hydra"]),
        ("import asr.config", ["torch", "numpy", "hydra", "omegaconf"]),
        ("import asr.config; asr.config.load('recipes/an4')", ["torch", "numpy", "lightning"]),
        ("import asr.cli", ["torch", "numpy", "pydantic", "hydra"]),
        ("import asr.decode.cli", ["torch", "lightning"]),
        ("import asr.train.run", ["torch", "lightning"]),
        ("import asr.decode.recognizer", ["lightning", "torchaudio"]),
    ],
)
def test_what_is_not_imported(code: str, absent: list[str]) -> None:
    check = f"{code}; import sys; found = [m for m in {absent!r} if m in sys.modules]; assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
