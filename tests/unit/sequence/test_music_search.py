"""The random search: what is drawn, that both recurrences get the same draws, which runs count, what is kept."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from asr.errors import AsrError, ConfigError
from asr.sequence import tasks
from asr.sequence.report import Result
from asr.sequence.settings import Case
from asr.sequence.task import Task
from recipes.sequence.music.search import Draw, Run, Top, best, best_epoch, compare, draw, main, search, table

scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed (asr-toolkit[sequence])")


GRU = {"name": "gru"}


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder with small sets: five pieces to train on, one of them longer than 200 frames."""
    generator = np.random.default_rng(1)
    sets = {}
    for key, lengths in ("traindata", (5, 4, 7, 230, 6)), ("validdata", (5,)), ("testdata", (6, 3)):
        sets[key] = np.empty((1, len(lengths)), dtype=object)
        for i, length in enumerate(lengths):
            sets[key][0, i] = (generator.random((length, 88)) < 0.05).astype(np.uint8)
    for name in "JSB_Chorales.mat", "Nottingham.mat":
        scipy_io.savemat(tmp_path / name, sets)
    return tmp_path


def arguments(music: Path, *more: str) -> list[str]:
    return ["--configurations", "2", "--cells", "gru", "--epochs", "2", "--jobs", "1", "--folder", str(music / "runs"),
            "--set", f"data.root={music}", *more]  # fmt: skip


def result(*validation: float | str, value: float) -> Result:
    return Result(
        task="music", case="", scale="search", seed=1, figure="NLL a frame", value=value, chance=None, target="",
        passed=None, paper="", parameters=1000, steps=10, seconds=2.0,
        curve=[[i, 1.0, v] for i, v in enumerate(validation, 1)],
    )  # fmt: skip


def written(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())["settings"]
        for path in folder.rglob("result.json")
    }


def test_draws_are_the_papers() -> None:
    draws = [draw(1, number) for number in range(1, 2001)]
    assert {d.num_layers for d in draws} == {2, 3}
    rates = np.log10([d.learning_rate for d in draws])
    assert rates.min() > -4
    assert rates.max() < -2
    assert np.mean(rates) == pytest.approx(-3, abs=0.05)
    assert np.std(rates) == pytest.approx(2 / math.sqrt(12), abs=0.03)
    for cell, largest in ("lstm", 300), ("gru", 350), ("rnn", 400):
        sizes = [d.hidden_size(cell) for d in draws]
        assert np.mean(sizes) == pytest.approx((50 + largest) / 2, abs=5)
        assert Draw(2, 0.0, 1e-3).hidden_size(cell) == 50
        assert Draw(2, math.nextafter(1.0, 0.0), 1e-3).hidden_size(cell) == largest
    assert draw(1, 7) == draws[6]
    assert draw(2, 7) != draws[6]


def test_both_recurrences_get_the_same_draws_and_the_papers_batches(
    music: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_arguments = arguments(music, "--sets", "jsb", "nottingham", "--set", "optim.gradient_clip=0.5")
    with pytest.raises(SystemExit) as caught:
        main(main_arguments)
    assert caught.value.code in (0, 1)  # who wins on noise is no matter
    settings = written(music / "runs")
    for name in "jsb", "nottingham":
        for number in 1, 2:
            full, diagonal = (settings[f"{name}/gru_{kind}-{number:03}"] for kind in ("full", "diagonal"))
            drawn = draw(1, number)
            for values in full, diagonal:
                assert values["optim"]["learning_rate"] == drawn.learning_rate
                assert values["optim"]["gradient_clip"] == 0.5
                assert values["stack"]["num_layers"] == drawn.num_layers
                assert values["stack"]["hidden_size"] == drawn.hidden_size("gru")
                # Five pieces in one batch; or six, the long one being cut, in two of three.
                assert values["batch_size"] == {"jsb": 5, "nottingham": 3}[name]
                assert (values["evaluate_every"], values["steps"]) == {"jsb": (1, 2), "nottingham": (2, 4)}[name]
            assert (full["stack"]["name"], diagonal["stack"]["name"]) == ("gru", "diagonal")
            assert diagonal["stack"]["cell"] == "gru"
    assert len(settings) == 8
    said = capsys.readouterr().out
    assert said.count("music jsb/gru_diagonal-") == 2
    assert "| nottingham | gru | full | 1 |" in said
    assert "of 2 sets" in said
    assert (music / "runs" / "search.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_kept(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    build = tasks.build

    def counting(name: str, case: Case, source: str) -> Task:
        trained.append(case.steps)
        return build(name, case, source)

    monkeypatch.setattr(tasks, "build", counting)
    once = arguments(music, "--sets", "jsb", "--set", "batch_size=2")
    search(once)
    assert trained.count(6) == 4  # 3 updates an epoch; the other one reads the set
    trained.clear()
    search([*once, "--configurations", "3"])
    assert trained.count(6) == 2
    trained.clear()
    search([*once, "--epochs", "1"])
    assert trained.count(3) == 4


def test_sets_can_cost_alike(music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(arguments(music, "--sets", "jsb", "nottingham", "--set", "batch_size=2", "--updates", "4", "--top", "2"))
    for values in written(music / "runs").values():
        assert (values["evaluate_every"], values["steps"]) == (3, 4)
    said = capsys.readouterr().out
    assert said.count("| gru | full | 2 |") == 2  # both of two; a tenth would be one
    assert said.count("4 updates") == 8


def test_what_is_printed_during_a_search_gets_where_it_was_sent(
    music: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    search(arguments(music, "--sets", "jsb", "--configurations", "1"))
    captured = capsys.readouterr()
    assert captured.out.count("music jsb/gru_") == 2
    assert "runs" in captured.err


def test_a_run_that_fails_is_told_and_the_others_go_on(
    music: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = tasks.build

    def failing(name: str, case: Case, source: str) -> Task:
        if case.stack is not None and case.stack.name == "gru" and case.steps == 2:
            raise RuntimeError("no memory")
        return build(name, case, source)

    monkeypatch.setattr(tasks, "build", failing)
    assert not search(arguments(music, "--sets", "jsb"))
    said = capsys.readouterr().out
    assert said.count("gru_full-001 FAILED: no memory") == 1
    assert "2 runs failed" in said
    assert len(written(music / "runs")) == 2
    monkeypatch.setattr("asr.sequence.tasks.music.Music.run", lambda *_: failing("music", Case(steps=2, stack=GRU), ""))
    with pytest.raises(AsrError, match="no run came to its end"):
        search(arguments(music, "--sets", "jsb", "--seed", "2"))


def test_the_best_by_validation_are_averaged_on_the_test_set() -> None:
    def run(number: int, recurrence: str = "full") -> Run:
        return Run("jsb", "gru", recurrence, number, Case())

    results = {run(n): result(9.0 + n, 8.0 + n, 8.5 + n, value=100.0 + n) for n in range(1, 17)}
    results[run(17)] = result(3.0, value=200.0)  # best in validation, whatever it has in testing
    results[run(18)] = result("nan", value=1.0)  # text, as files have it
    results[run(19)] = result(8.5, "nan", value=1.0)  # went astray after an epoch
    results[run(20)] = result(value=1.0)
    results[run(1, "diagonal")] = result(math.nan, value=1.0)
    full, diagonal = best(results, 2)
    assert [r.value for r in full.runs] == [200.0, 1.0]
    assert full.nll == 100.5
    assert list(map(best_epoch, full.runs)) == [1, 1]
    assert best_epoch(result(9.0, 8.0, 8.5, value=1.0)) == 2
    assert not diagonal.runs
    assert math.isnan(diagonal.nll)
    rows = list(table([full, diagonal]))
    assert rows[2] == "| jsb | gru | full | 2 | 100.5 (sd 1.4e+02) | 5.75 | 1 | 1,000 | 2 |"
    assert "none learned" in rows[3]


def test_sets_on_which_diagonal_is_as_good_are_counted() -> None:
    def tops(name: str, cell: str, full: float, diagonal: float) -> list[Top]:
        return [Top(name, cell, kind, [result(1.0, value=v)]) for kind, v in (("full", full), ("diagonal", diagonal))]

    some = [*tops("jsb", "gru", 8.5, 8.5), *tops("nottingham", "gru", 3.0, 3.1), *tops("jsb", "lstm", 8.6, 8.5)]
    nothing = Top("musedata", "gru", "diagonal", [])
    assert list(compare([*some, nothing])) == [("gru", 1, 3), ("lstm", 1, 1)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--epochs", "0"], "--epochs: got 0"),
        (["--updates", "0"], "--updates: got 0"),
        (["--top", "0"], "--top: got 0"),
        (["--folder", "/dev/null/runs"], "the folder cannot be made"),
        (["--set", "stack.hidden_size=3"], "got 'stack', expected one of batch_size, data"),
        (["--set", "dataroot"], "did you mean data"),
        (["--set", "data.root=${"], "expected KEY=VALUE"),
        (["--set", "batch_size=0"], "batch_size: Input should be greater than 0"),
        (["--set", "data.root=nowhere"], r"got no JSB_Chorales\.mat there"),
    ],
)
def test_mistakes_are_named(music: Path, wrong: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("$", r"\$")):
        search(arguments(music, "--sets", "jsb", *wrong))
