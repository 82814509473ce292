"""Drawing, which is an extra: training and decoding do without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.atomic import atomic_write
from asr.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """An empty figure with no window; `options` are those of matplotlib's.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'asr-toolkit[plots]'") from None
    return Figure(**options)


def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a picture, in the format that the path ends in (PNG if in none); its folder is made if need be.

    Raises:
        ConfigError: matplotlib does not know the format.
        DataError: it cannot be written.
    """
    kind, known = path.suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{path}: got a picture of the kind {kind!r}, expected one of {', '.join(known)}")
    with atomic_write(path) as handle:
        figure.savefig(handle, format=kind, dpi=dpi)
