"""A sequence recipe's settings: its config.yaml, one case of it, and the command line on top.

task: adding
claims: [...]
defaults: {...}           # of every case
quick:                    # some minutes on a CPU each
  tcn: {...}              # a case; `stack=tcn` picks it
full:                     # the paper's size
  tcn: {...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from asr.config.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Section
from asr.config.options import StackOptions, names, validate_stack
from asr.config.text import yaml_mistake
from asr.errors import ConfigError
from asr.messages import did_you_mean

Scale = Literal["ci", "quick", "full"]
SCALES: tuple[Scale, ...] = ("ci", "quick", "full")


# Settings that several tasks do not use, for their UNUSED_SETTINGS: of `SequenceModel` around a stack, of a learning
# rate that falls, and all that go with one shared training, where a task has nets of its own and plain descent.
READOUT = ("embedding_size", "readout_deviation", "readout_dropout")
SCHEDULE = ("optim.reduce_factor", "optim.reduce_after", "optim.reduce_from")
SHARED_TRAINING = (
    "stack",
    *READOUT,
    "optim.squared_average",
    "optim.weight_decay",
    "optim.vanishing_regularizer",
    *SCHEDULE,
    "stop_at_target",
    "device",
    "graph",
    "seconds",
)


class Data(Section):
    """Where a task's data set is; unused by the tasks that make their own."""

    root: Path | None = Field(default=None, description="folder that holds it")
    cache: Path = Field(default=Path("data/sequence"), description="where downloads go")
    download: bool = False


class Optim(Section):
    """The optimiser and what is done to gradients."""

    name: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    momentum: Probability = Field(default=0.0, description="of sgd (Nesterov)")
    squared_average: Probability = Field(default=0.9, description="of rmsprop: decay of the mean square")
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: NonNegativeFloat = Field(default=0.0, description="largest norm of the gradient; 0: no clipping")
    vanishing_regularizer: NonNegativeFloat = Field(
        default=0.0, description="weight of Pascanu et al.'s Omega; 0: none"
    )
    reduce_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0,
        description="the learning rate's factor when an evaluation is worse than the last `reduce_after` ones",
    )
    reduce_after: PositiveInt = 3
    reduce_from: NonNegativeInt = Field(default=0, description="evaluations before the first such reduction")


class Target(Section):
    """What the figure has to be; one bound or both."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Target:
        if self.at_most is None and self.at_least is None:
            raise ValueError("got no bound, expected at_most, at_least or both")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value satisfies the bounds; a NaN never does."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        bounds = [] if self.at_least is None else [f">= {self.at_least:g}"]
        return " ".join([*bounds, *([] if self.at_most is None else [f"<= {self.at_most:g}"])])


class Case(Section):
    """One training: what, with what, for how long, and what must come out."""

    options: dict[str, Any] = Field({}, description="of the task; asr/sequence/tasks/TASK.py has them")
    stack: Annotated[SerializeAsAny[StackOptions] | None, BeforeValidator(lambda v: v and validate_stack(v))] = None
    embedding_size: NonNegativeInt = Field(0, description="for symbols: a learned vector of so many; 0: one-hot")
    readout_deviation: NonNegativeFloat = Field(0.0, description="of the read-out's initial weights; 0: torch's own")
    readout_dropout: Probability = Field(default=0.0, description="on the read-out's input")
    optim: Optim = Optim()
    batch_size: PositiveInt = 32
    steps: PositiveInt = Field(1000, description="updates")
    seconds: NonNegativeFloat = Field(
        0.0, description="of training, after which it is cut short: tested, but not judged by the target; 0: no limit"
    )
    evaluate_every: PositiveInt = Field(
        100,
        description="updates between two looks at the validation set; an epoch, to a stack that changes with epochs",
    )
    stop_at_target: bool = Field(False, description="end when the validation figure satisfies the target")
    target: Target | None = None
    paper: str = Field("", description="the figure that was published, and where")
    seed: NonNegativeInt = 1
    threads: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    graph: bool = Field(
        False,
        description="on a GPU: record an update's forward and backward pass once, as a CUDA graph; pays where a model"
        " is small and batches are of one shape, and is not for stacks that look at values on their way",
    )
    data: Data = Data()
    sanity: bool = Field(False, description="part of `make sanity`")


class Claim(Section):
    """That one case's mean figure is at most (at least) `factor` times another's plus `margin`."""

    case: str
    at_most: str | None = None
    at_least: str | None = None
    factor: float = 1.0
    margin: float = 0.0
    sanity: bool = False

    @model_validator(mode="after")
    def _one_other(self) -> Claim:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("expected either at_most or at_least, the name of another case")
        return self

    @property
    def other(self) -> str:
        """The case that is compared with."""
        return self.at_most or self.at_least or ""

    def holds(self, value: float, other: float) -> bool:
        """Whether the claim is true of two mean figures; never of a NaN."""
        bound = self.factor * other + self.margin
        return value <= bound if self.at_most else value >= bound

    def __str__(self) -> str:
        bound = f"{'' if self.factor == 1 else f'{self.factor:g} x '}{self.other}"
        return f"{self.case} {'<=' if self.at_most else '>='} {bound}{f' {self.margin:+g}' if self.margin else ''}"


class Recipe(Section):
    """A sequence recipe: cases by scale and name."""

    task: str
    claims: dict[Scale, tuple[Claim, ...]] = Field({})
    ci: dict[str, Case] = Field({})
    quick: dict[str, Case] = Field({})
    full: dict[str, Case] = Field({})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """The cases of a scale."""
        return getattr(self, scale)

    @model_validator(mode="after")
    def _claims_name_cases(self) -> Recipe:
        for scale, claims in self.claims.items():
            for claim in claims:
                for name in (claim.case, claim.other):
                    if name not in self.cases(scale):
                        raise ValueError(f"claims.{scale}: {claim}: there is no case {name!r} under {scale}")
        return self


def load_recipe(folder: Path) -> Recipe:
    """Read `folder/config.yaml`; every case is what stands under `defaults` with its own values on top.

    Raises:
        ConfigError: lists every mistake.
    """
    return _recipe(folder / "config.yaml", {}, "")


def load_case(folder: Path, arguments: Sequence[str]) -> tuple[Recipe, Scale, str, Case]:
    """Choose a case by `stack=NAME` and `scale=SCALE` and set what the other arguments, `a.b=value`, say.

    A stack that the recipe has no case for takes the place of the first case's, with its size and its target.

    Raises:
        ConfigError: lists every mistake.
    """
    source = folder / "config.yaml"
    recipe = load_recipe(folder)
    given: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or not key:
            raise ConfigError(f"got {argument!r}, expected key=value, such as stack=gru or optim.learning_rate=1e-3")
        _put(given, key.split("."), yaml.safe_load(text), argument)
    scale = given.pop("scale", "quick")
    if scale not in SCALES or not recipe.cases(scale):
        there = [name for name in SCALES if recipe.cases(name)]
        raise ConfigError(f"scale: got {scale!r}, expected one of {', '.join(there)}{did_you_mean(scale, there)}")
    cases = recipe.cases(scale)
    stack = given.pop("stack", {})
    name = stack if isinstance(stack, str) else stack.pop("", next(iter(cases)))
    options = {} if isinstance(stack, str) else stack
    if name in cases:
        base = name
    elif name in names():
        base = next(iter(cases))
        first = cases[base].stack
        size = first.model_dump(include={"num_layers", "hidden_size"}) if first else {}
        options = {"name": name, **size, **options}
        given["paper"] = given.get("paper", "")
    else:
        known = [*cases, *names()]
        raise ConfigError(f"stack: got {name!r}, expected one of {', '.join(cases)}{did_you_mean(name, known)}")
    if options:
        given["stack"] = options
    case = _recipe(source, given, f"{scale}.{base}", replace_stack="name" in options).cases(scale)[base]
    return recipe, scale, name, case


@contextmanager
def describe_mistakes(source: object, prefix: str = "") -> Iterator[None]:
    """Turn pydantic's errors into one ConfigError that lists them with their keys."""
    try:
        yield
    except ValidationError as error:
        lines = [
            f"  {prefix}{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
            + ("" if isinstance(e["input"], dict) else f"; got {e['input']!r}")
            for e in error.errors(include_url=False)
        ]
        count = f"{len(lines)} mistake{'s' * (len(lines) > 1)}"
        raise ConfigError("\n".join([f"{count} in the configuration from {source}", *lines])) from None


def _recipe(source: Path, overrides: dict[str, Any], place: str, replace_stack: bool = False) -> Recipe:
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(yaml_mistake(error, str(source))) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: got {type(values).__name__}, expected a mapping with task, quick, ...")
    defaults = values.pop("defaults", {})
    for scale in SCALES:
        for name, case in (values.get(scale) or {}).items():
            merged = _merge(defaults, case or {})
            if f"{scale}.{name}" == place:
                if replace_stack:
                    merged.pop("stack", None)
                merged = _merge(merged, overrides)
            values[scale][name] = merged
    with describe_mistakes(source):
        return Recipe.model_validate(values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second one's values on top; another stack or target takes the place of the whole."""
    merged = dict(below)
    for key, value in above.items():
        whole = key == "target" or (key == "stack" and isinstance(value, dict) and "name" in value)
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and not whole:
            value = _merge(merged[key], value)
        merged[key] = value
    return merged


def _put(values: dict[str, Any], path: Sequence[str], value: Any, argument: str) -> None:
    for key in path[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):  # stack=NAME before stack.option=value
            below = values[key] = {"": below}
        values = below
    if isinstance(values.get(path[-1]), dict):  # and after it
        values[path[-1]][""] = value
    else:
        values[path[-1]] = value
