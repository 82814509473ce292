"""Puts the toolkit's presets on Hydra's search path; imports Hydra, so that this is imported where it is needed."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from asr.config.presets import conf_folder


class PresetsSearchPath(SearchPathPlugin):
    """Appends `conf/`: a recipe's own presets of the same name come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="asr", path=f"file://{conf_folder()}")


Plugins.instance().register(PresetsSearchPath)
