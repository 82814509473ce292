"""Drawing, which is an extra: training and decoding do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
