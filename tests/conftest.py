"""What all tests share: one thread, fixed seeds, shapes checked against their annotations, and `gpu` skips."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that tests start inherit it

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

# Before the first import of these: every call is checked against its annotations, shapes included.
jaxtyping.install_import_hook(["asr.nn", "asr.stacks", "asr.heads", "asr.features"], "beartype.beartype")

torch.set_num_threads(1)
hypothesis.settings.register_profile("reproducible", derandomize=True, deadline=None)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # some library may draw from it
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword, which a folder's name is too
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch finds none"))
