"""`asr doctor` as it is called, where it ends before there is anything to train on."""

import json
from pathlib import Path

import pytest

from asr.cli import run

ROOT = Path(__file__).parents[4]


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """The exit status and the lines of its JSON."""
    status = run("doctor", [*arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    verdicts = {line["verdict"] for line in report["lines"]}
    assert report["verdict"] == ("error" if "error" in verdicts else "warning" if "warning" in verdicts else "ok")
    return status, report["lines"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sead=4", "stack=gruu"], "did you mean seed?"),
        (["data.train=[]"], "data.train=[]: expected at least one split"),
        (["resume=true"], "resume=true needs run_dir=FOLDER"),
    ],
)
def test_a_wrong_configuration(capsys: pytest.CaptureFixture[str], overrides: list[str], message: str) -> None:
    status, (line,) = doctor(capsys, str(ROOT / "recipes" / "an4"), *overrides)
    assert (status, line["check"], line["verdict"]) == (1, "config", "error")
    assert message in line["message"]


def test_a_run_that_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints.json").write_text("{}")
    status, (line,) = doctor(capsys, str(ROOT / "recipes" / "an4"), f"run_dir={tmp_path}")
    assert (status, "holds a run already" in line["message"]) == (1, True)


def test_what_is_no_recipe_for_speech(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [base, {override /data: an4}, _self_]\n")
    status, (line,) = doctor(capsys, str(tmp_path))
    assert (status, f"{tmp_path}/train.py: no such file" in line["message"]) == (1, True)
    (tmp_path / "train.py").write_text("x = 1\n")
    status, (line,) = doctor(capsys, str(tmp_path))
    assert (status, "has no `prepare`" in line["message"]) == (1, True)


def test_data_that_is_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [f"data.cache={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    status, (config, line) = doctor(capsys, str(ROOT / "recipes" / "an4"), *folders)
    assert (status, config["verdict"], line["verdict"]) == (1, "ok", "error")
    assert "the an4 corpus is not here" in line["message"]
    assert not (tmp_path / "run").exists()


def test_lines_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [f"data.cache={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    assert run("doctor", [str(ROOT / "recipes" / "an4"), *folders]) == 1
    first, second, *_, fix, counts = capsys.readouterr().out.splitlines()
    assert first.startswith("ok      config")
    assert second.startswith("error   config       the an4 corpus is not here")
    assert fix.strip().startswith("fix: ")
    assert counts.endswith("1 ok, 0 warning, 1 error")


def test_data_that_cannot_be_prepared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [base, {override /data: an4}, _self_]\n")
    (tmp_path / "train.py").write_text(
        "from asr.errors import DataError\ndef prepare(config):\n    raise DataError('a.flac: damaged')\n"
    )
    status, (config, line) = doctor(
        capsys, str(tmp_path), f"data.cache={tmp_path / 'cache'}", f"run_dir={tmp_path}/run"
    )
    assert (status, config["verdict"]) == (1, "ok")
    assert (line["check"], line["verdict"], line["message"]) == ("data", "error", "a.flac: damaged")
