"""A device that is not there is a message, not a traceback."""

import pytest
import torch

from asr.decode.device import choose_device
from asr.errors import ConfigError


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:x", "gpu", "-1", "meta", "vulkan", "hpu", "opengl"])
def test_others_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device: got {name}, expected one that torch finds here: cpu$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_makes_that_this_build_lacks_are_refused(name: str) -> None:
    if torch.get_device_module(name).is_available():
        pytest.skip(f"torch finds {name} here")
    with pytest.raises(ConfigError, match=f"device: got {name}, expected one that torch finds here: cpu"):
        choose_device(name)


def test_one_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"got cuda:3, expected one that torch finds here: cpu, cuda:0$"):
        choose_device("cuda:3")
