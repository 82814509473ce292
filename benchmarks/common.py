"""What every benchmark shares: side-by-side timing, and rows that say where they come from."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch


def side_by_side(functions: dict[str, Callable[[], Any]], *, repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns (A B A B ...), so that a drifting machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-warm_up, repeats):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def seconds_alone(function: Callable[[], Any], *, repeats: int, warm_up: int = 2) -> list[float]:
    """Seconds of each call, with nothing of its data in a cache; on a GPU those of the device alone.

    Before each call a buffer larger than any cache is filled some times, which leaves a GPU busy until the call and
    what is to be timed have been handed to it.
    """
    on_gpu = torch.cuda.is_available()
    junk = torch.empty(2**28, dtype=torch.uint8, device="cuda" if on_gpu else "cpu")
    seconds = []
    for turn in range(-warm_up, repeats):
        for _ in range(10 if on_gpu else 1):
            junk.fill_(turn % 7)
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            took = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            function()
            took = time.perf_counter() - start
        if turn >= 0:
            seconds.append(took)
    return seconds


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, and the quartiles around it."""
    low, median, high = statistics.quantiles(seconds if len(seconds) > 1 else 2 * seconds, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def emit(**row: Any) -> None:
    """Print one row as JSON, with its provenance."""
    print(json.dumps(row | provenance()), flush=True)


def provenance() -> dict[str, Any]:
    """Command, commit, hardware, date and versions."""
    root = Path(__file__).parents[1]
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
        ).stdout.strip()
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": commit,
        "date": date.today().isoformat(),
        "hardware": _hardware(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        model = f"{named.get('model name', model)} (family {named.get('cpu family')}, model {named.get('model')})"
    return f"{model}, {os.cpu_count()} cores"
