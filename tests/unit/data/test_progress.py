"""Progress bars: what is printed while they run."""

from __future__ import annotations

import pytest

from asr.data.progress import progress_bar, seconds_bar


@pytest.mark.parametrize("bar", [progress_bar, seconds_bar])
def test_output_that_is_sent_elsewhere_gets_there(
    bar: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    with bar("working", 10) as done:  # type: ignore[operator]
        print("a line\tas it is")
        done(10)
    captured = capsys.readouterr()
    assert captured.out == "a line\tas it is\n"
    assert "working" in captured.err


def test_a_hidden_bar_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with seconds_bar("working", 10, hidden=True) as done:
        done(5)
    assert capsys.readouterr().err == ""
