"""Trainings on the language of tones, as processes of their own, on a GPU."""

from pathlib import Path

import pytest

from asr.config import load
from tests.integration.conftest import ROOT, start  # noqa: F401 -- a fixture
from tests.support.tones import prepare
from tests.support.train_tones import SETTINGS


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shards of the tone language are; made here, as several trainings begin at once."""
    folder = tmp_path_factory.mktemp("tones")
    prepare(load(ROOT / "recipes" / "an4", [*SETTINGS, f"data.cache={folder}"]))
    return folder
