"""`asr stack NAME [key=value]`: what a stack is as configured, for one stack or several side by side."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from asr.config.options import StackOptions, names
from asr.config.presets import conf_folder, presets
from asr.config.schema import Config
from asr.config.validate import validate
from asr.errors import ConfigError
from asr.messages import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What multiply-adds are counted over: about 10 s at a frame every 40 ms; a multiple of the dilations 1, 2, 4, ... 256,
# so that a dilated layer does not add frames of its own.
NUM_FRAMES = 256

DESCRIPTION = """\
Print what a stack is as configured. NAME is a preset of conf/stack/ or, if there is no preset of that name, a file of
asr/stacks/ with its defaults. key=value after a NAME belongs to it, before the first NAME to all.

  asr stack gru_streaming
  asr stack hidden_size=256 gru dilated cell=gru num_layers=5 tcn kernel_size=5"""

EPILOG = f"""\
multiply-adds: of matrix products and convolutions, the mean over an utterance of {NUM_FRAMES} frames; what the stack
pads it with is counted too. What is done to each element by itself counts nothing, recurrences included.
look-ahead, past: input frames after and before its own that an output frame depends on."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a stack is. Frames are those of its input.

    Attributes:
        stack: name of the preset or of the stack's file.
        given: key=value words that belong to it alone.
        options: all its options.
        input_size: features of a frame.
        frame_seconds: time between two frames.
        parameters: how many numbers are learned.
        multiply_adds_per_frame: see EPILOG.
        lookahead_frames: None: it needs the whole utterance.
        past_frames: None: all of them.
        not_streamable: why not; empty if it streams.
        figures: of the stack's own; None for what is infinite.
    """

    stack: str
    given: list[str]
    options: dict[str, Any]
    input_size: int
    frame_seconds: float
    parameters: int
    multiply_adds_per_frame: float
    lookahead_frames: int | None
    past_frames: int | None
    not_streamable: str
    figures: dict[str, float | None]

    @property
    def multiply_adds_per_second(self) -> float:
        """Of audio."""
        return self.multiply_adds_per_frame / self.frame_seconds

    @property
    def receptive_field_frames(self) -> int | None:
        """Past, its own frame, and look-ahead; None: all frames."""
        if self.past_frames is None or self.lookahead_frames is None:
            return None
        return self.past_frames + 1 + self.lookahead_frames

    def to_json(self) -> str:
        """One line."""
        frames = {"lookahead": self.lookahead_frames, "past": self.past_frames}
        seconds = {f"{name}_seconds": self._seconds(count) for name, count in frames.items()}
        derived = {
            "multiply_adds_per_second": self.multiply_adds_per_second,
            "receptive_field_frames": self.receptive_field_frames,
            "streams": not self.not_streamable,
        }
        return json.dumps({**asdict(self), **derived, **seconds})

    def cells(self) -> dict[str, str]:
        """What the table shows."""
        return {
            "parameters": _with_prefix(self.parameters),
            "multiply-adds per second of audio": _with_prefix(self.multiply_adds_per_second),
            "look-ahead, frames": self._frames(self.lookahead_frames),
            "past, frames": self._frames(self.past_frames),
            "receptive field, frames": self._frames(self.receptive_field_frames),
            "streams": "no" if self.not_streamable else "yes",
            **{
                name.replace("_", " "): "infinite" if value is None else f"{value:.4g}"
                for name, value in self.figures.items()
            },
        }

    def _seconds(self, frames: int | None) -> float | None:
        return None if frames is None else frames * self.frame_seconds

    def _frames(self, frames: int | None) -> str:
        seconds = self._seconds(frames)
        if seconds is None:
            return "unbounded"
        if seconds < 1:
            return f"{frames} = {1000 * seconds:.4g} ms" if frames else "0"
        return f"{frames} = {seconds:.4g} s"


def main(argv: Sequence[str]) -> int:
    """Print a table, or with --json one object a stack."""
    parser = argparse.ArgumentParser(
        prog="asr stack",
        usage="asr stack [options] [key=value ...] NAME [key=value ...] [NAME [key=value ...]] ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="NAME, key=value", help="a stack, and its options")
    parser.add_argument("--input-size", type=int, help="features of a frame; default: as in the recipes' default model")
    parser.add_argument("--frame-seconds", type=float, help="time between two frames; default likewise")
    parser.add_argument("--json", action="store_true", help="one JSON object a stack, with all its options")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.input_size is not None and arguments.input_size < 1:
        parser.error(f"--input-size: got {arguments.input_size}, expected a number above 0")
    if arguments.frame_seconds is not None and not 0 < arguments.frame_seconds < math.inf:
        parser.error(f"--frame-seconds: got {arguments.frame_seconds}, expected a number above 0")
    shared, rows = _rows(arguments.words)
    if not rows:
        parser.error(f"got no stack, expected one of {', '.join(_known())}")

    configs = _configs(shared, rows)
    input_size, frame_seconds = arguments.input_size, arguments.frame_seconds
    if input_size is None or frame_seconds is None:
        default_size, default_seconds = _default_frames()
        input_size = default_size if input_size is None else input_size
        frame_seconds = default_seconds if frame_seconds is None else frame_seconds
    descriptions = _describe(rows, configs, input_size, frame_seconds)
    if arguments.json:
        for description in descriptions:
            print(description.to_json())
    else:
        _print(descriptions, shared)
    return 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A stack of the command line: its name, its own key=value words, and the command that names it alone."""

    name: str
    words: list[str]
    source: str


def _rows(words: Sequence[str]) -> tuple[tuple[str, ...], list[_Row]]:
    """The key=value words for all stacks, and the stacks."""
    starts = [i for i, word in enumerate(words) if "=" not in word]
    shared, *parts = (tuple(words[start:end]) for start, end in pairwise([0, *starts, len(words)]))
    return shared, [_Row(name, own, " ".join([*shared, name, *own])) for name, *own in parts]


def _known() -> list[str]:
    return sorted({*names(), *presets()["stack"]})


def _configs(shared: Sequence[str], rows: Sequence[_Row]) -> list[StackOptions]:
    """Compose and validate each row's options, torch not imported.

    Raises:
        ConfigError: all mistakes of all rows.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    configs, mistakes = [], []
    with initialize_config_dir(str(conf_folder()), version_base=None):
        for row in rows:
            if row.name in presets()["stack"]:
                composed: Any = OmegaConf.to_container(compose(f"stack/{row.name}"), resolve=True)
                values = composed["stack"]
            elif row.name in names():
                values = {"name": row.name}
            else:
                known = _known()
                hint = did_you_mean(row.name, known)
                mistakes.append(f"got stack {row.name!r}, expected one of {', '.join(known)}{hint}")
                continue
            given, wrong = _values([*shared, *row.words])
            try:
                configs.append(validate({"stack": {**values, **given}}, row.source, wrong).stack)
            except ConfigError as error:
                mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return configs


def _values(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of key=value words, as a recipe's command line has them, and what is wrong with the other words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    values, mistakes = {}, []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            mistakes.append(f"{word}: expected key=value")
            continue
        if override.is_sweep_override():
            mistakes.append(f"{word}: several values, expected one; name the stack once for each")
        else:
            values[override.key_or_group] = override.value()
    return values, mistakes


def _default_frames() -> tuple[int, float]:
    """Features of a frame, and the seconds between two, of the model that recipes have by default."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from asr import features
    from asr.nn import front_end

    with initialize_config_dir(str(conf_folder()), version_base=None):
        composed = OmegaConf.to_container(compose("base", ["data=embedded"]), resolve=True)
    config = Config.model_validate(composed)
    extractor = features.build(config.features, config.data.sample_rate_hz)
    convolutions = front_end.build(config.front_end, extractor.num_features)
    return convolutions.output_size, extractor.hop_seconds * convolutions.time_stride


def _describe(
    rows: Sequence[_Row], configs: Sequence[StackOptions], input_size: int, frame_seconds: float
) -> list[Description]:
    """Make the stacks and look at them.

    Raises:
        ConfigError: options that do not go together.
    """
    import torch

    from asr.stacks._multiply_adds import build_and_count

    torch.set_num_threads(1)  # many small operations: more threads only wait for each other
    descriptions, mistakes = [], []
    for row, config in zip(rows, configs, strict=True):
        try:
            stack, multiply_adds = build_and_count(config, input_size, NUM_FRAMES)
        except ValueError as error:
            if not str(error).startswith("stack."):  # what a user can cause names the key
                raise
            mistakes.append(f"1 mistake in the configuration from {row.source}\n  {error}")
            continue
        descriptions.append(
            Description(
                stack=row.name,
                given=row.words,
                options=config.model_dump(mode="json"),
                input_size=input_size,
                frame_seconds=frame_seconds,
                parameters=sum(parameter.numel() for parameter in stack.parameters()),
                multiply_adds_per_frame=multiply_adds,
                lookahead_frames=stack.lookahead_frames,
                past_frames=stack.past_frames,
                not_streamable=stack.not_streamable,
                figures={key: value if math.isfinite(value) else None for key, value in stack.figures().items()},
            )
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return descriptions


def _print(descriptions: Sequence[Description], shared: Sequence[str]) -> None:
    """Tables with a column for each stack, as many beside each other as fit; then why stacks do not stream."""
    from rich.console import Console

    console = Console(highlight=False)
    size, seconds = descriptions[0].input_size, descriptions[0].frame_seconds
    title = f"{size} features a frame, a frame every {1000 * seconds:.4g} ms"
    console.print("; ".join([title, *shared]), markup=False)
    while descriptions:
        count = _fitting(descriptions, console)
        console.print(_table(descriptions[:count]))
        for description in descriptions[:count]:
            if description.not_streamable:
                label = " ".join([description.stack, *description.given])
                console.print(f"{label} does not stream: {description.not_streamable}", markup=False)
        descriptions = descriptions[count:]


def _fitting(descriptions: Sequence[Description], console: Console) -> int:
    """How many of the first stacks a table can have without breaking a word, at least one."""
    unlimited = console.options.update(width=10_000)
    count = len(descriptions)
    while count > 1 and console.measure(_table(descriptions[:count]), options=unlimited).maximum > console.width:
        count -= 1
    return count


def _table(descriptions: Sequence[Description]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("", max_width=24)
    cells = [description.cells() for description in descriptions]
    height = max(len(description.given) for description in descriptions)
    for description in descriptions:
        header = [description.stack, *description.given, *[""] * (height - len(description.given))]  # all from the top
        table.add_column(Text("\n".join(header)), justify="right", overflow="fold")
    for label in dict.fromkeys(label for column in cells for label in column):
        table.add_row(label, *(column.get(label, "") for column in cells))
    return table


def _with_prefix(number: int | float) -> str:
    """Four digits and k, M or G."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.4g}{prefix}"
    return f"{number:.4g}"
