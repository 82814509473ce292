"""Composition of a recipe's configuration from presets and the command line, by Hydra; validation by the schema.

A recipe's folder has a config.yaml; the toolkit's `conf/` has the groups of presets. On the command line
`group=option` picks a preset and `a.b.c=value` sets a value. Hydra would stop at the first key that it does not
know, so that every value is given to it as `++a.b.c=value`, and the schema reports all the wrong ones together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from asr.config.job_process import run_job
from asr.config.presets import presets
from asr.config.schema import Config
from asr.config.text import yaml_mistake
from asr.config.validate import validate
from asr.errors import AsrError, ConfigError
from asr.messages import did_you_mean, user_errors_exit

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def load(recipe_dir: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Compose and validate the configuration of the recipe in `recipe_dir`.

    Args:
        recipe_dir: folder with config.yaml.
        overrides: as on the command line: `data=embedded`, `optim.learning_rate=1e-3`.

    Raises:
        ConfigError: lists every mistake, whether in a preset's name, a key or a value.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import asr.config.search_path  # noqa: F401 -- registers the presets

    folder = Path(recipe_dir).resolve()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{recipe_dir}: has no config.yaml, expected a recipe's folder")
    source = " ".join([str(folder / "config.yaml"), *overrides])
    groups = presets(folder)
    usable, mistakes = _check(overrides, groups)
    with _composition_errors(source, mistakes), initialize_config_dir(str(folder), version_base=None):
        values = OmegaConf.to_container(compose("config", usable), resolve=True)
    return validate(values, source, mistakes, groups)


def run_recipe(recipe_file: str, function: Callable[[Config], Any]) -> None:
    """Call `function` with the configuration that a recipe's train.py was started with.

    With a flag of Hydra's on the command line (`--help`, `--cfg job`, `-m` for sweeps, `--info`), Hydra's own
    program takes over; a sweep calls `function` for each job, through the launcher that is configured. A job of
    several ranks is a process of its own, and one that fails is named and leaves the others to run.

    Args:
        recipe_file: the script's `__file__`; config.yaml lies beside it.
        function: what to do with the configuration.

    Raises:
        SystemExit: a mistake of the user, after its message; 2 if it is in the configuration.
    """
    folder = Path(recipe_file).resolve().parent
    arguments = sys.argv[1:]
    with user_errors_exit(Path(recipe_file).name):
        if any(argument.startswith("-") for argument in arguments):
            _run_hydra(folder, arguments, function)
        else:
            function(load(folder, arguments))


def _run_hydra(folder: Path, arguments: Sequence[str], function: Callable[[Config], Any]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    import asr.config.search_path  # noqa: F401 -- registers the presets

    program = sys.argv[0]
    groups = presets(folder)

    def task(composed: DictConfig) -> None:
        context = HydraConfig.get()
        overrides = list(context.overrides.task)
        is_sweep = context.mode == RunMode.MULTIRUN
        try:
            values: Any = OmegaConf.to_container(composed, resolve=True)
            if is_sweep and values.get("run_dir") is None:
                values["run_dir"] = f"{context.sweep.dir}/{context.job.num}"
                overrides.append(f"++run_dir={values['run_dir']}")
            config = validate(values, " ".join([str(folder / "config.yaml"), *overrides]), groups=groups)
            # Ranks that the job starts run its command line: it has to be the job's, not the sweep's.
            sys.argv = [program, *overrides]
            if is_sweep and config.trainer.world_size > 1:
                # What ranks leave in a process, variables and the store they met in, would hold up the next job's.
                run_job([sys.executable, *sys.argv])
            else:
                function(config)
        except AsrError as error:
            if is_sweep:  # Hydra goes on with the other jobs, and raises the first one's error after them
                print(f"{Path(program).name}: job {context.job.num}: {error}", file=sys.stderr)
            raise

    # Otherwise Hydra would shorten the traceback of a bug, and print its own message where ours is due.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    settings = [
        _quoted(f"hydra.job.name={folder.name}"),
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        "hydra.output_subdir=null",
        "hydra.run.dir=.",
        _quoted(f"hydra.sweep.dir=runs/{folder.name}/sweep_${{now:%Y-%m-%d_%H-%M-%S}}"),
        "hydra.sweep.subdir=.",
    ]
    usable, mistakes = _check([word for word in arguments if _is_override(word)], groups, sweep=True)
    if mistakes:
        raise ConfigError("\n  ".join([f"cannot compose {folder / 'config.yaml'}", *mistakes]))
    # Hydra's parser wants all overrides in one piece; ours come first, so that the user's win. Flags come last: what
    # follows one may be its value.
    flags = [word for word in arguments if not _is_override(word)]
    sys.argv = [program, *settings, *usable, *flags]
    with _composition_errors(str(folder / "config.yaml")):
        hydra.main(version_base=None, config_path=str(folder), config_name="config")(task)()


@contextmanager
def _composition_errors(source: str, mistakes: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise into a ConfigError, after the mistakes that were found before."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except yaml.YAMLError as error:
        raise ConfigError(yaml_mistake(error, source)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError("\n  ".join([f"cannot compose {source}", *mistakes, str(error)])) from None


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _check(
    overrides: Sequence[str], groups: Mapping[str, Sequence[str]], *, sweep: bool = False
) -> tuple[list[str], list[str]]:
    """Give the overrides that can be composed, as Hydra shall see them, and what is wrong with the others."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    usable, mistakes = [], []
    for given in overrides:
        for text in (given, _quoted(given)):
            try:
                mistake = _option_mistake(parser.parse_override(text), groups, sweep=sweep)
            except HydraException:
                mistake = f"{given}: expected section.key=value or group=option"
                if "=" in given:
                    mistake += "; what Hydra cannot read as it stands needs quotes: 'data.train=[\"a=b\"]'"
            else:
                break
        if mistake:
            mistakes.append(mistake)
        else:
            usable.append(_for_hydra(text, groups))
    return usable, mistakes


def _quoted(override: str) -> str:
    """Quote a value, such as a path with =, ~ or umlauts, but no list or mapping, and not several values."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, equals, value = override.partition("=")
    if not equals or "," in value or value.startswith(("[", "{", "'", '"')):
        return override
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _option_mistake(override: Override, groups: Mapping[str, Sequence[str]], *, sweep: bool) -> str:
    """Say what is wrong with the choice of a preset, if anything is."""
    if override.is_sweep_override():
        return "" if sweep else f"{override.input_line}: several values, which needs -m, for a sweep over them"
    group, option = override.key_or_group, override.value()
    if group not in groups or isinstance(option, list) or override.is_delete() or option in groups[group]:
        return ""
    return f"{group}: got {option!r}, expected one of {', '.join(groups[group])}{did_you_mean(option, groups[group])}"


def _for_hydra(override: str, groups: Collection[str]) -> str:
    """Put `++` before a value; leave presets, Hydra's own settings, and what has a prefix as they are."""
    key, equals, _ = override.partition("=")
    is_value = equals and key.partition("@")[0] not in groups and not key.startswith(("+", "~", "hydra.", "hydra/"))
    return f"++{override}" if is_value else override
