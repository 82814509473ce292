"""`python recipes/sequence/run_all.py`: every case of every task, and one table of what came out."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from asr.data.progress import progress_bar
from asr.errors import ConfigError
from asr.messages import did_you_mean, user_errors_exit
from asr.sequence.report import Result
from asr.sequence.settings import SCALES, Claim, Recipe, Scale, load_recipe


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a process of its own, so that neither threads nor random states are shared."""

    folder: Path
    case: str
    scale: Scale
    seed: int
    run_dir: Path
    overrides: tuple[str, ...] = ()

    def run(self) -> Result | str:
        """Run it; gives the result, or what the process said when it failed."""
        result = self.run_dir / "result.json"
        result.unlink(missing_ok=True)
        settings = [f"stack={self.case}", f"scale={self.scale}", f"seed={self.seed}", f"run_dir={self.run_dir}"]
        command = [sys.executable, str(self.folder / "train.py"), *settings, *self.overrides]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        return Result.read(result) if result.exists() else process.stderr.strip()[-2000:]


def main(recipes: Path, arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and print the table.

    Raises:
        SystemExit: 1 if a target or a claim is missed or a run fails, 2 for a wrong command line.
    """
    with user_errors_exit("run_all.py"):
        raise SystemExit(0 if run(recipes, sys.argv[1:] if arguments is None else arguments) else 1)


def run(recipes: Path, arguments: Sequence[str]) -> bool:
    """Run all; gives whether every target and claim holds."""
    there = sorted(path.parent.name for path in recipes.glob("*/config.yaml"))
    options = _parser(there).parse_args(arguments)
    wanted = [given.partition("/")[::2] for given in options.tasks] or [(name, "") for name in there]
    for name, _ in wanted:
        if name not in there:
            raise ConfigError(f"got {name!r}, expected one of {', '.join(there)}{did_you_mean(name, there)}")
    suite = {name: load_recipe(recipes / name) for name, _ in wanted}
    if options.check:
        check(recipes, suite)
        return True
    chosen = {
        name: _chosen(name, recipe, options, [case for task, case in wanted if task == name])
        for name, recipe in suite.items()
    }
    jobs = [
        Job(recipes / name, case, options.scale, seed, options.folder / name / options.scale / f"{case}-{seed}",
            tuple(options.set))
        for name, cases in chosen.items()
        for case in cases
        for seed in range(1, options.seeds + 1)
    ]  # fmt: skip
    if not jobs:
        raise ConfigError(f"--scale {options.scale}: no case of {', '.join(suite)} is of this scale")
    results: dict[Job, Result | str] = {}
    for job, result in _run(jobs, options.jobs):
        results[job] = result
        print(result if isinstance(result, Result) else f"{job.folder.name} {job.case} FAILED: {result}", flush=True)
    done = [result for result in results.values() if isinstance(result, Result)]
    claims = {
        name: [c for c in _claims(recipe, options.scale, options.sanity) if {c.case, c.other} <= set(chosen[name])]
        for name, recipe in suite.items()
    }
    verdicts = list(check_claims(claims, done))
    print()
    print("\n".join(table(done)))
    if verdicts:
        print()
        print("\n".join(claim_table(verdicts)))
    failed = len(results) - len(done)
    missed = sum(result.passed is False for result in done) + sum(not holds for *_, holds in verdicts)
    print(f"\n{len(done)} runs, {missed} targets and claims missed, {failed} runs failed")
    return not missed and not failed


def check(recipes: Path, suite: Mapping[str, Recipe]) -> None:
    """Validate every case, the task's options included, without training.

    Raises:
        ConfigError: lists the mistakes of the first case that has any.
    """
    from asr.sequence.tasks import check_options

    for name, recipe in suite.items():
        cases = [(scale, case, recipe.cases(scale)[case]) for scale in SCALES for case in recipe.cases(scale)]
        for scale, label, case in cases:
            check_options(recipe.task, case, f"{recipes / name / 'config.yaml'}: {scale}.{label}")
        print(f"{name}: {len(cases)} cases")


def table(results: Iterable[Result]) -> Iterator[str]:
    """A Markdown table, one line for each task and case; several seeds are averaged."""
    yield "| task | case | parameters | result | target | paper | verdict | updates | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: r.task):
        grouped.setdefault((result.task, result.case), []).append(result)
    for (task, case), runs in grouped.items():
        first = runs[0]
        passed = [r.passed for r in runs]
        verdict = "-" if None in passed else f"{sum(map(bool, passed))} of {len(runs)} met" if len(runs) > 1 else ""
        verdict = verdict or ("met" if passed[0] else "MISSED")
        if any(r.cut_short for r in runs):
            verdict = f"cut short, of {first.settings['steps']:,} updates"
        columns = (
            task, case, f"{first.parameters:,}", f"{first.figure} {_spread([r.value for r in runs])}",
            first.target or "-", first.paper or "-", verdict,
            f"{mean(r.steps for r in runs):.0f}", f"{mean(r.seconds for r in runs):.0f}",
        )  # fmt: skip
        yield f"| {' | '.join(columns)} |"


def claim_table(verdicts: Iterable[tuple[str, Claim, float, float, bool]]) -> Iterator[str]:
    """A Markdown table of the claims that compare cases."""
    yield "| task | claim | figures | verdict |"
    yield "|---|---|---|---|"
    for task, claim, value, other, holds in verdicts:
        yield f"| {task} | {claim} | {value:.4g} and {other:.4g} | {'met' if holds else 'MISSED'} |"


def check_claims(
    claims: Mapping[str, Iterable[Claim]], results: Iterable[Result]
) -> Iterator[tuple[str, Claim, float, float, bool]]:
    """Compare the mean figures of the cases that claims speak of.

    A case without a result breaks its claim, and so does one that was cut short.
    """
    figures: dict[tuple[str, str], list[float]] = {}
    for result in results:
        value = math.nan if result.cut_short else result.value
        figures.setdefault((result.task, result.case), []).append(value)
    for task, wanted in claims.items():
        for claim in wanted:
            value, other = (mean(figures.get((task, case), [math.nan])) for case in (claim.case, claim.other))
            yield task, claim, value, other, claim.holds(value, other)


def _claims(recipe: Recipe, scale: Scale, sanity: bool) -> Iterator[Claim]:
    return (claim for claim in recipe.claims.get(scale, ()) if claim.sanity or not sanity)


def _chosen(task: str, recipe: Recipe, options: argparse.Namespace, wanted: Sequence[str]) -> list[str]:
    """The cases to run: the ones that are wanted, all (wanted as ""), or those of `make sanity` and of its claims.

    Raises:
        ConfigError: there is no such case.
    """
    cases = recipe.cases(options.scale)
    for name in wanted:
        if name and name not in cases:
            hint = did_you_mean(name, list(cases))
            raise ConfigError(
                f"got {task}/{name}, expected a case of --scale {options.scale}: {', '.join(cases)}{hint}"
            )
    compared = {name for claim in _claims(recipe, options.scale, options.sanity) for name in (claim.case, claim.other)}
    sane = {name for name, case in cases.items() if not options.sanity or case.sanity or name in compared}
    return [name for name in cases if name in sane and ("" in wanted or name in wanted)]


def _run(jobs: Sequence[Job], num_workers: int) -> Iterator[tuple[Job, Result | str]]:
    with progress_bar("runs", len(jobs)) as done, ThreadPoolExecutor(num_workers) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
                done(1)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{mean(values):.4g} (sd {stdev(values):.2g} of {len(values)})"


def _parser(there: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_all.py", description="Run the sequence recipes; print one table.")
    parser.add_argument("tasks", nargs="*", metavar="TASK[/CASE]", help=f"default: all of {', '.join(there)}")
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--sanity", action="store_true", help="only the cases that are quick and telling")
    parser.add_argument("--check", action="store_true", help="validate every case, train nothing")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1..N of each case (1)")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time (all cores)")
    parser.add_argument("--folder", type=Path, default=Path("runs/sequence"), help="where runs go (runs/sequence)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run: data.root=...")
    return parser
