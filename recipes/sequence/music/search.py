"""Diagonal against full recurrence by random search (Subakan and Smaragdis 2017, arXiv 1704.05420).

`python recipes/sequence/music/search.py --set data.root=FOLDER [--sets jsb] [--cells gru] [--configurations 60]`

Layers, units and learning rate are drawn as in the authors' code, and each draw is trained with full recurrent matrices
and with diagonal ones, for every set and cell. The tenth of the draws that is best on the validation set (--top) is
averaged on the test set. A search that was interrupted, or is asked for more configurations, keeps what is done.

Unlike the authors' it draws once for both recurrences and for all sets and cells, which leaves less to luck, and uses
Adam, one of their three optimisers, with the gradient clipped. Weights begin as our stacks' do (an LSTM's forget bias
at 1, recurrent matrices orthogonal), theirs by Xavier's rule throughout.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from asr.atomic import atomic_write
from asr.data.progress import progress_bar
from asr.errors import AsrError, ConfigError
from asr.messages import did_you_mean, user_errors_exit
from asr.sequence.report import Report, Result
from asr.sequence.settings import Case, describe_mistakes

SETS = ("jsb", "nottingham", "musedata", "piano_midi")
LARGEST_LAYER = {"rnn": 400, "lstm": 300, "gru": 350}  # units; the smallest has 50
RECURRENCES = ("full", "diagonal")
CHOP_FRAMES = 200  # all sets but JSB, whose pieces are shorter
TOP_SHARE = 0.1
SETTABLE = ("batch_size", "data", "device", "optim", "readout_dropout", "threads")  # what is not drawn
SHARE_OF_SETS = 0.75  # on which diagonal recurrence has to be as good: the paper's three of four


@dataclass(frozen=True, slots=True)
class Draw:
    """A configuration. hidden_share: where between the smallest layer and the cell's largest one, in [0, 1)."""

    num_layers: int
    hidden_share: float
    learning_rate: float

    def hidden_size(self, cell: str) -> int:
        """Units of a layer, each number of them as likely."""
        return 50 + int(self.hidden_share * (LARGEST_LAYER[cell] - 50 + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training."""

    set: str
    cell: str
    recurrence: str
    number: int
    case: Case

    def __str__(self) -> str:
        return f"{self.set}/{self.cell}_{self.recurrence}-{self.number:03}"


@dataclass(frozen=True, slots=True)
class Top:
    """The best runs of a set, cell and recurrence."""

    set: str
    cell: str
    recurrence: str
    runs: Sequence[Result]

    @property
    def nll(self) -> float:
        """Their mean on the test set; NaN if no run learned."""
        return mean(result.value for result in self.runs) if self.runs else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print tables, draw search.png.

    Raises:
        SystemExit: 1 if full recurrence is better on more than a quarter of the sets, or a run fails; 2 for a wrong
            command line.
    """
    with user_errors_exit("search.py"):
        raise SystemExit(0 if search(sys.argv[1:] if arguments is None else arguments) else 1)


def search(arguments: Sequence[str]) -> bool:
    """Run what the command line asks for; gives whether diagonal recurrence is as good as the paper says."""
    options = _parser().parse_args(arguments)
    for name in ("configurations", "epochs", "updates", "top", "jobs", "seed"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: got {value}, expected at least 1")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--folder {options.folder}: the folder cannot be made: {error.strerror}") from error
    results: dict[Run, Result] = {}
    failed = 0
    for run, result in _run(plan(options), options.folder, options.jobs):
        if isinstance(result, Result):
            results[run] = result
        failed += isinstance(result, str)
        print(result if isinstance(result, Result) else f"{run} FAILED: {result}", flush=True)
    if not results:
        raise AsrError("no run came to its end")
    tops = list(best(results, options.top or max(1, round(TOP_SHARE * options.configurations))))
    print()
    print("\n".join(table(tops)))
    print()
    verdicts = list(compare(tops))
    for cell, as_good, num_sets in verdicts:
        print(f"{cell}: diagonal <= full on {as_good} of {num_sets} sets")
    if failed:
        print(f"{failed} runs failed")
    try:
        draw_picture(options.folder / "search.png", tops)
        print(f"picture: {options.folder / 'search.png'}")
    except ImportError:
        print("no search.png: matplotlib is not installed (pip install 'asr-toolkit[plots]')", file=sys.stderr)
    return not failed and all(as_good >= SHARE_OF_SETS * num_sets for _, as_good, num_sets in verdicts)


def draw(seed: int, number: int) -> Draw:
    """The configuration `number` of a search; it does not depend on how many there are."""
    generator = np.random.default_rng((seed, number))
    return Draw(
        num_layers=int(generator.integers(2, 4)),
        hidden_share=float(generator.random()),
        learning_rate=float(10 ** generator.uniform(-4, -2)),
    )


def plan(options: argparse.Namespace) -> list[Run]:
    """All runs, the first configuration's before the second's; reads the sets.

    Raises:
        ConfigError: a setting is wrong, or a set is not at hand.
        DataError: a set is damaged.
    """
    num_pieces: dict[str, int] = {}
    runs = []
    for number in range(1, options.configurations + 1):
        drawn = draw(options.seed, number)
        for name in options.sets:
            for cell in options.cells:
                for recurrence in RECURRENCES:
                    values = _values(drawn, name, cell, recurrence, options)
                    if name not in num_pieces:
                        num_pieces[name] = _count_pieces(values)
                    # The whole set in a batch, or a half of it, as in the authors' code.
                    values.setdefault("batch_size", math.ceil(num_pieces[name] / (1 if name == "jsb" else 2)))
                    updates = math.ceil(num_pieces[name] / values["batch_size"])
                    values |= {"evaluate_every": updates, "steps": options.updates or updates * options.epochs}
                    runs.append(Run(name, cell, recurrence, number, _case(values)))
    return runs


def train(run: Run, folder: Path) -> Result | str:
    """Train, unless `folder` has the result already; gives the result, or the message of a run that failed."""
    import torch

    from asr.sequence import tasks

    run_dir = folder / str(run)
    settings = run.case.model_dump(mode="json", exclude={"data", "threads"})
    if (run_dir / "result.json").exists():
        result = Result.read(run_dir / "result.json")
        if result.settings == settings:
            return result
    case, stack = run.case, run.case.stack
    assert stack is not None
    torch.set_num_threads(case.threads)
    start = time.perf_counter()
    try:
        task = tasks.build("music", case, "search.py")
        outcome = task.run(case, Report(str(run), task.figure, case.steps))  # not entered: no bar for each run
    except RuntimeError as error:  # no memory for it
        return str(error)
    result = Result(
        task="music",
        case=str(run),
        scale="search",
        seed=case.seed,
        figure=task.figure,
        value=outcome.value,
        chance=task.chance,
        target="",
        passed=None,
        paper="",
        parameters=outcome.parameters,
        steps=outcome.steps,
        seconds=round(time.perf_counter() - start, 2),
        figures={
            "layers": stack.num_layers,
            "units": stack.hidden_size,
            "learning rate": case.optim.learning_rate,
        },
        curve=[list(point) for point in outcome.curve],
        settings=settings,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    result.write(run_dir)
    return result


def best(results: dict[Run, Result], count: int) -> Iterator[Top]:
    """Of each set, cell and recurrence the `count` runs that are best on the validation set."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for run, result in results.items():
        groups.setdefault((run.set, run.cell, run.recurrence), []).append(result)
    for key in sorted(groups, key=lambda k: (SETS.index(k[0]), k[1], RECURRENCES.index(k[2]))):
        learned = [result for result in groups[key] if best_epoch(result)]
        yield Top(*key, sorted(learned, key=lambda r: min(_validation(r)))[:count])


def best_epoch(result: Result) -> int:
    """The epoch, counted from 1, with the least validation NLL; 0 if none was finite. The last may be a part of one."""
    values = _validation(result)
    return 1 + values.index(min(values)) if values and min(values) < math.inf else 0


def table(tops: Iterable[Top]) -> Iterator[str]:
    """A Markdown table; sd is over the best runs."""
    yield "| set | cell | recurrence | best runs | test NLL a frame | validation | best epoch | parameters | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for top in tops:
        runs = top.runs
        columns = [top.set, top.cell, top.recurrence, str(len(runs))]
        if runs:
            spread = f" (sd {stdev(r.value for r in runs):.2g})" if len(runs) > 1 else ""
            columns += [
                f"{top.nll:.4g}{spread}", f"{mean(min(_validation(r)) for r in runs):.4g}",
                f"{median(map(best_epoch, runs)):g}", f"{mean(r.parameters for r in runs):,.0f}",
                f"{mean(r.seconds for r in runs):.0f}",
            ]  # fmt: skip
        else:
            columns += ["none learned", *["-"] * 4]
        yield f"| {' | '.join(columns)} |"


def compare(tops: Iterable[Top]) -> Iterator[tuple[str, int, int]]:
    """For each cell: on how many sets diagonal recurrence is at least as good, of how many."""
    means = {(top.cell, top.set, top.recurrence): top.nll for top in tops}
    for cell in dict.fromkeys(cell for cell, *_ in means):
        names = list(dict.fromkeys(name for other, name, _ in means if other == cell))
        pairs = [[means.get((cell, name, recurrence), math.nan) for recurrence in RECURRENCES] for name in names]
        yield cell, sum(diagonal <= full for full, diagonal in pairs), len(pairs)


def draw_picture(path: Path, tops: Sequence[Top]) -> None:
    """For each set a box plot of the best runs' test NLL, and for each cell their mean validation NLL by epoch.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    sets, cells = (list(dict.fromkeys(getattr(top, name) for top in tops)) for name in ("set", "cell"))
    colors: dict[str, str] = dict(zip(RECURRENCES, ("tab:orange", "tab:blue"), strict=True))
    shape = (len(sets), 1 + len(cells))
    figure = Figure(figsize=(3.2 * shape[1], 2.6 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False)
    for name, (boxes, *curves) in zip(sets, panels, strict=True):
        there = [top for top in tops if top.set == name and top.runs]
        drawn = boxes.boxplot([[r.value for r in top.runs] for top in there], patch_artist=True)
        for box, top in zip(drawn["boxes"], there, strict=True):
            box.set_facecolor(colors[top.recurrence])
        boxes.set_xticks(range(1, len(there) + 1), [f"{top.cell}\n{top.recurrence}" for top in there], fontsize=7)
        boxes.set(title=f"{name}, best runs", ylabel="test NLL a frame")
        for axes, cell in zip(curves, cells, strict=True):
            lowest = []
            for top in there:
                if top.cell == cell:
                    columns = zip(*map(_validation, top.runs), strict=False)  # to where the first one ended
                    values = [mean(column) for column in columns]
                    axes.plot(range(1, len(values) + 1), values, color=colors[top.recurrence], label=top.recurrence)
                    lowest.append(min(values))
            if lowest:
                axes.set_ylim(0.98 * min(lowest), 1.25 * max(lowest))
                axes.legend(fontsize="small")
            axes.set(title=f"{name}, {cell}", xlabel="epochs", ylabel="validation NLL")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=70)


def _values(drawn: Draw, name: str, cell: str, recurrence: str, options: argparse.Namespace) -> dict[str, Any]:
    """The case's settings but for the batch size, unless that is among the given ones, and what depends on it."""
    kind = {"name": "diagonal", "cell": cell} if recurrence == "diagonal" else {"name": cell}
    if kind["name"] == "rnn":
        kind["activation"] = "tanh"
    values = {
        "options": {"set": name, "chop_frames": 0 if name == "jsb" else CHOP_FRAMES},
        "stack": {
            **kind,
            "num_layers": drawn.num_layers,
            "hidden_size": drawn.hidden_size(cell),
            "dropout": 0.1,
            "bidirectional": False,
            "batch_norm": "none",
        },
        "readout_dropout": 0.1,
        "optim": {"name": "adam", "learning_rate": drawn.learning_rate, "gradient_clip": 1.0},
        "seed": options.seed,
    }
    for given in options.set:
        key = given.partition("=")[0].partition(".")[0]
        if key not in SETTABLE:
            hint = did_you_mean(key, SETTABLE)
            raise ConfigError(f"--set {given}: got {key!r}, expected one of {', '.join(SETTABLE)}{hint}")
    try:
        merged = OmegaConf.merge(values, OmegaConf.from_dotlist(options.set))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"--set: {error}; expected KEY=VALUE, such as data.root=FOLDER") from None
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _case(values: dict[str, Any]) -> Case:
    with describe_mistakes("search.py and --set"):
        return Case.model_validate(values)


def _count_pieces(values: dict[str, Any]) -> int:
    from asr.sequence import tasks
    from asr.sequence.tasks.music import Music

    task = tasks.build("music", _case(values), "search.py")
    assert isinstance(task, Music)
    return len(task.pieces["train"])


def _validation(result: Result) -> list[float]:
    """The validation NLL after each epoch, infinite where it was not finite."""
    values = [float(point[2]) for point in result.curve]  # text, in a file, if not finite
    return [value if math.isfinite(value) else math.inf for value in values]


def _run(runs: Sequence[Run], folder: Path, num_jobs: int) -> Iterator[tuple[Run, Result | str]]:
    with progress_bar("runs", len(runs)) as done:
        for pair in _results(runs, folder, num_jobs):
            yield pair
            done(1)


def _results(runs: Sequence[Run], folder: Path, num_jobs: int) -> Iterator[tuple[Run, Result | str]]:
    if num_jobs == 1:
        yield from ((run, train(run, folder)) for run in runs)
        return
    # Workers die of Ctrl-C at once, so that leaving the pool does not wait for what they do.
    with ProcessPoolExecutor(
        num_jobs, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        running = {pool.submit(partial(train, folder=folder), run): run for run in runs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool:
            raise AsrError(
                "a worker was killed, maybe for want of memory; run again with fewer --jobs to go on"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="search.py", description="Diagonal against full recurrence: random search.")
    parser.add_argument("--configurations", type=int, default=60, help="draws for each set and cell (60)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="default: all")
    parser.add_argument("--cells", nargs="+", choices=tuple(LARGEST_LAYER), default=("lstm", "gru"), help="(lstm gru)")
    parser.add_argument("--epochs", type=int, default=300, help="of each run (300)")
    parser.add_argument("--updates", type=int, help="of each run in place of --epochs, so that all sets cost alike")
    parser.add_argument("--top", type=int, help="best runs to average (a tenth of the configurations)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws and of the weights (1)")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time (all cores)")
    parser.add_argument("--folder", type=Path, default=Path("runs/sequence/music/search"), help="where runs go")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every run: data.root=..., batch_size=16"
    )
    return parser


if __name__ == "__main__":
    main()
