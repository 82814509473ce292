"""The reliability diagram: how often words of each confidence are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from asr.metrics.calibration import NUM_BINS, Reliability
from asr.pictures import new_figure, save_figure


def draw_reliability(path: Path, sets: Mapping[str, Reliability]) -> None:
    """Draw the share of right words against confidence; the area of a dot is its share of the words.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the format.
        DataError: the picture cannot be written.
    """
    figure = new_figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    for name, one in sets.items():
        area = [10 + 400 * count / sum(one.count) for count in one.count]
        (line,) = axes.plot(one.confidence, one.accuracy, label=f"{name}: off by {100 * one.error:.1f} %")
        axes.scatter(one.confidence, one.accuracy, area, color=line.get_color(), alpha=0.5)
    axes.set(xlabel=f"confidence, mean of each of {NUM_BINS} bins", ylabel="share of words that are right")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), aspect="equal")
    axes.legend(loc="upper left")
    save_figure(figure, path, dpi=100)
