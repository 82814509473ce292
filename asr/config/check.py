"""`asr check RECIPE [group=option] [section.key=value]`: print a recipe's whole configuration, or all its mistakes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr.config.load import load
from asr.config.presets import presets
from asr.config.schema import Config
from asr.config.text import to_yaml
from asr.errors import ConfigError
from asr.messages import STATUS_USAGE


def main(argv: Sequence[str]) -> int:
    """Check what the arguments name; exit status 2 if there is a mistake."""
    parser = argparse.ArgumentParser(prog="asr check", description="Compose and check a recipe's configuration.")
    parser.add_argument("recipe", type=Path, help="folder with config.yaml")
    parser.add_argument("overrides", nargs="*", help="group=option or section.key=value, as for the recipe's train.py")
    parser.add_argument(
        "--every-preset", action="store_true", help="try each preset of each group in turn and print only mistakes"
    )
    options = parser.parse_intermixed_args(argv)
    if not options.every_preset:
        print(to_yaml(load(options.recipe, options.overrides)), end="")
        return 0
    results = list(every_preset(options.recipe, options.overrides))
    mistakes = [result for _, result in results if isinstance(result, ConfigError)]
    for mistake in mistakes:
        print(mistake)
    print(f"{options.recipe}: {len(results)} presets, {len(mistakes)} with mistakes")
    return STATUS_USAGE if mistakes else 0


def every_preset(recipe_dir: Path, overrides: Sequence[str] = ()) -> Iterator[tuple[str, Config | ConfigError]]:
    """Compose the recipe with each preset of each group in turn; gives the choice and what came of it."""
    for group, options in presets(recipe_dir).items():
        for option in options:
            choice = f"{group}={option}"
            try:
                yield choice, load(recipe_dir, [choice, *overrides])
            except ConfigError as error:
                yield choice, error
