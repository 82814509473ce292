"""The presets: `conf/GROUP/NAME.yaml`, and a recipe's own folders of the same form."""

from __future__ import annotations

from pathlib import Path

_NOT_OF_A_CONFIGURATION = {"cluster"}  # asr/launch/ reads these


def conf_folder() -> Path:
    """Folder of the toolkit's presets: asr/conf in an installed wheel, conf/ in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def presets(recipe_dir: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Give the names of the presets in each group, a recipe's own ones included."""
    groups: dict[str, set[str]] = {}
    for folder in [conf_folder(), *([recipe_dir] if recipe_dir else [])]:
        for path in folder.glob("*/*.yaml"):
            if path.parent.name not in _NOT_OF_A_CONFIGURATION:
                groups.setdefault(path.parent.name, set()).add(path.stem)
    return {group: tuple(sorted(groups[group])) for group in sorted(groups)}
