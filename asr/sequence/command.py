"""`python recipes/sequence/TASK/train.py stack=NAME [scale=full] [key=value ...]`."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from asr.errors import ConfigError
from asr.messages import user_errors_exit
from asr.process import prepare_process
from asr.sequence.settings import SCALES, load_case, load_recipe


def main(recipe_file: str) -> None:
    """Run the case that the command line names, of the recipe in whose folder `recipe_file` stands.

    Writes curve.jsonl, curve.png and result.json into `run_dir` (default: runs/sequence/TASK/SCALE/STACK-SEED).

    Raises:
        SystemExit: 1 if the target is missed or something is wrong with the data, 2 for a wrong command line.
    """
    folder = Path(recipe_file).resolve().parent
    with user_errors_exit(f"{folder.name}/{Path(recipe_file).name}"):
        arguments = sys.argv[1:]
        if {"-h", "--help"} & set(arguments):
            print(_help(folder))
            return
        prepare_process()
        raise SystemExit(0 if run(folder, arguments) else 1)


def run(folder: Path, arguments: Sequence[str]) -> bool:
    """Run one case; gives whether its target was met (also true if there is none, or no time to reach it)."""
    given = [a.removeprefix("run_dir=") for a in arguments if a.startswith("run_dir=")]
    recipe, scale, name, case = load_case(folder, [a for a in arguments if not a.startswith("run_dir=")])
    run_dir = Path(given[-1] if given else f"runs/sequence/{folder.name}/{scale}/{name}-{case.seed}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir}: the folder cannot be made: {error.strerror}") from error

    import torch

    from asr.sequence import tasks
    from asr.sequence.report import Report, Result, draw_curve

    torch.set_num_threads(case.threads)
    task = tasks.build(recipe.task, case, str(folder / "config.yaml"))
    title = f"{folder.name} {name}"
    start = time.perf_counter()
    with Report(title, task.curve_figure or task.figure, case.steps, run_dir / "curve.jsonl") as report:
        outcome = task.run(case, report)
    seconds = time.perf_counter() - start
    settings = case.model_dump(mode="json") | {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    result = Result(
        task=folder.name,
        case=name,
        scale=scale,
        seed=case.seed,
        figure=task.figure,
        value=outcome.value,
        chance=task.chance,
        target="" if case.target is None else str(case.target),
        passed=case.target.holds(outcome.value) if case.target is not None and not outcome.cut_short else None,
        paper=case.paper,
        parameters=outcome.parameters,
        steps=outcome.steps,
        seconds=round(seconds, 2),
        higher_is_better=task.higher_is_better,
        figures=outcome.figures,
        curve=[list(point) for point in outcome.curve],
        cut_short=outcome.cut_short,
        settings=settings,
    )
    result.write(run_dir)
    print(result)
    try:
        draw_curve(run_dir / "curve.png", task, title, outcome, case)
        print("pictures:", *(str(path) for path in [run_dir / "curve.png", *task.draw(run_dir)]))
    except ImportError:
        print("no curve.png: matplotlib is not installed (pip install 'asr-toolkit[plots]')", file=sys.stderr)
    return result.passed is not False


def _help(folder: Path) -> str:
    recipe = load_recipe(folder)
    lines = [f"usage: {folder.name}/train.py [stack=NAME] [scale=SCALE] [run_dir=FOLDER] [key=value ...]", ""]
    for scale in SCALES:
        for name, case in recipe.cases(scale).items():
            target = f"  target {case.target}" if case.target else ""
            lines.append(f"  scale={scale} stack={name}{target}{f'; paper: {case.paper}' if case.paper else ''}")
    lines += ["", "Any other stack takes the first case's place: stack=NAME stack.hidden_size=64 ..."]
    return "\n".join([*lines, f"All settings: {folder / 'config.yaml'}"])
