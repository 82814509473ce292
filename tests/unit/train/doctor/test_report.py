"""What a line says to people and to machines."""

import pytest

from asr.train.doctor.report import Line, Verdict, duration, lost, worst


def test_a_line_has_its_verdict_its_details_and_its_fix() -> None:
    line = Line("leaks", Verdict.ERROR, "7 of 9", "other splits", tuple("abcdefg"), {"leaks": 7})
    first, *details, more, fix = str(line).splitlines()
    assert first.split() == ["error", "leaks", "7", "of", "9"]
    assert [detail.strip() for detail in details] == list("abcde")
    assert (more.strip(), fix.strip()) == ("and 2 more; --json lists them", "fix: other splits")
    assert line.to_json()["details"] == list("abcdefg")
    assert (line.to_json()["verdict"], line.to_json()["figures"]) == ("error", {"leaks": 7})


def test_a_message_of_several_lines_keeps_to_its_column() -> None:
    first, second = str(Line("config", Verdict.OK, "one\ntwo")).splitlines()
    assert first.index("one") == second.index("two")


def test_what_is_not_ok_says_how_to_mend_it() -> None:
    assert str(Line("disk", Verdict.OK, "room")) == "ok      disk         room"
    for verdict in (Verdict.WARNING, Verdict.ERROR):
        with pytest.raises(AssertionError):
            Line("disk", verdict, "full")


def test_the_gravest_verdict_counts() -> None:
    lines = [Line("a", verdict, "", "fix") for verdict in (Verdict.OK, Verdict.ERROR, Verdict.WARNING)]
    assert worst(lines) is Verdict.ERROR
    assert worst(lines[::2]) is Verdict.WARNING
    assert worst([]) is Verdict.OK


@pytest.mark.parametrize(
    ("num_lost", "verdict"), [(0, Verdict.OK), (1, Verdict.WARNING), (10, Verdict.WARNING), (11, Verdict.ERROR)]
)
def test_some_lost_is_a_warning_a_tenth_an_error(num_lost: int, verdict: Verdict) -> None:
    assert lost(num_lost, 100) is verdict


def test_durations() -> None:
    assert [duration(s) for s in (41, 720, 3.4 * 3600, 5.2 * 86400)] == ["41 s", "12 min", "3.4 h", "5.2 days"]
