"""A run's report: what is printed while its bar moves."""

import pytest

from asr.sequence.report import Report


def test_what_is_printed_during_a_run_gets_where_it_was_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    with Report("music tcn", "NLL a frame", 10) as report:
        print("a line\tas it is")
        report.point(10, 1.0, 8.5)
    captured = capsys.readouterr()
    assert captured.out == "a line\tas it is\n"
    assert "music tcn" in captured.err
    assert "NLL a frame 8.5" in captured.err
