"""The command `asr`: help, mistakes, exit statuses."""

import json
import os
import subprocess
import sys

import pytest

from asr import __version__, cli
from asr.errors import AsrError, ConfigError, DataError


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert len(cli.COMMANDS) >= 3
    assert all(f"  {name}" in shown and text in shown for name, (text, _) in cli.COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"asr {__version__}\n"


@pytest.mark.parametrize("argv", [["decoed", "a", "--json"], []])
def test_an_unknown_command_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert ("got command 'decoed', expected one of check, decode" in shown) == bool(argv)
    assert ("did you mean decode?" in shown) == bool(argv)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"asr {command}" in capsys.readouterr().out


def test_check_prints_the_configuration_or_its_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "recipes/an4", "seed=4"]) == 0
    assert "\nseed: 4\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", "recipes/an4", "sead=4"])
    assert stopped.value.code == 2
    assert "did you mean seed?" in capsys.readouterr().err


def test_check_tries_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "recipes/an4", "--every-preset"]) == 0
    assert "presets, 0 with mistakes" in capsys.readouterr().out
    assert cli.main(["check", "recipes/an4", "sead=4", "--every-preset"]) == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("a: wrong"), 2, "asr check: a: wrong\n"),
        (DataError("b: damaged"), 1, "asr check: b: damaged\n"),
        (AsrError("c"), 1, "asr check: c\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_messages_and_statuses(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("asr.config.check.main", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check"])
    assert stopped.value.code == status
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.config.check.main", lambda argv: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check"])


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m asr check recipes/an4 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_a_full_disk_is_said() -> None:
    command = f"{sys.executable} -m asr check recipes/an4 > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "asr check: what it prints cannot be written: No space left on device\n"


def test_names_that_are_not_utf_8_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9")
    monkeypatch.setattr("asr.config.check.main", lambda argv: print(json.dumps(name, ensure_ascii=False)) or 0)
    assert cli.main(["check"]) == 0
    assert json.loads(capsys.readouterr().out) == name
