"""How a run tells what it does and what came out: a progress bar, curve.jsonl as it grows, curve.png, result.json."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from asr.atomic import atomic_write
from asr.sequence.settings import Case
from asr.sequence.task import Outcome, Task


class Report:
    """The progress bar of one run, on standard error if that is a terminal, and its curve so far in a file.

    Args:
        title: what runs.
        figure: name of the figure on the validation set.
        total: updates to come.
        log: gets a line of JSON for each point of the curve at once, which is what a run that is killed leaves.
    """

    def __init__(self, title: str, figure: str, total: int, log: Path | None = None) -> None:
        self.figure, self.log = figure, log
        if log is not None:
            log.write_text("")
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self.bar = Progress(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=console,
            disable=not console.is_terminal, refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),  # else what is printed would not reach the file that it was sent to
        )  # fmt: skip
        self.row = self.bar.add_task(title, total=total, figures="")

    def __enter__(self) -> Report:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, step: int) -> None:
        """So many updates are done."""
        self.bar.update(self.row, completed=step)

    def point(self, step: int, loss: float, value: float) -> None:
        """A new point of the curve."""
        if self.log is not None:
            line = json.dumps(_plain({"updates": step, "loss": loss, self.figure: value}), allow_nan=False)
            with self.log.open("a") as file:
                file.write(line + "\n")
        self.bar.update(self.row, completed=step, figures=f"loss {loss:.4g}, {self.figure} {value:.4g}")


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table.

    target, paper: as text, empty if there is none. passed: None without a target, or if cut short. seconds: of training
    and testing. settings: the case, and what it ran on. cut_short: its time was up before all updates were done.
    """

    task: str
    case: str
    scale: str
    seed: int
    figure: str
    value: float
    chance: float | None
    target: str
    passed: bool | None
    paper: str
    parameters: int
    steps: int
    seconds: float
    higher_is_better: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    cut_short: bool = False

    def write(self, folder: Path) -> None:
        """Write result.json; numbers that are not finite become text, which every reader of JSON takes."""
        values = {name: _plain(getattr(self, name)) for name in self.__slots__}
        with atomic_write(folder / "result.json") as file:
            file.write((json.dumps(values, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        values = json.loads(path.read_text())
        for name in ("value", "chance"):
            if isinstance(values[name], str):
                values[name] = float(values[name])
        return cls(**values)

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[self.passed]
        target = f" (target {self.target}: {verdict})" if self.target else ""
        chance = "" if self.chance is None else f", chance {self.chance:.4g}"
        others = "".join(f", {name} {value:.4g}" for name, value in self.figures.items())
        return (
            f"{self.task} {self.case}, seed {self.seed}: {self.figure} {self.value:.4g}{target}{chance}{others};"
            f" {self.parameters} parameters, {self.steps} updates, {self.seconds:.0f} s{', CUT SHORT' * self.cut_short}"
        )


def draw_curve(path: Path, task: Task, title: str, outcome: Outcome, case: Case) -> None:
    """Draw the training loss and the validation figure against updates.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    steps, losses, values = zip(*outcome.curve, strict=True) if outcome.curve else ((), (), ())
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    marker = "." if len(steps) < 12 else None
    axes.plot(steps, values, label=f"{task.curve_figure or task.figure}, validation", color="tab:blue", marker=marker)
    if task.chance is not None:
        axes.axhline(task.chance, label=f"chance {task.chance:.4g}", color="gray", linestyle=":")
    if case.target is not None and not task.curve_figure:
        for bound in (case.target.at_most, case.target.at_least):
            if bound is not None:
                axes.axhline(bound, label=f"target {case.target}", color="tab:green", linestyle="--")
    if not task.higher_is_better and values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set(
        title=f"{title}: {outcome.value:.4g} on the test set", xlabel="updates", ylabel=task.curve_figure or task.figure
    )
    other = axes.twinx()
    other.plot(steps, losses, label="training loss", color="tab:orange", alpha=0.6, marker=marker)
    other.set_ylabel("training loss")
    # By label: the two bounds of a target are one entry of the legend.
    lines = {str(line.get_label()): line for line in (*axes.get_lines(), *other.get_lines())}
    axes.legend(list(lines.values()), list(lines), fontsize="small")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
