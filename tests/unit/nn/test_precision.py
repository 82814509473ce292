"""TF32 is off inside, and afterwards what it was."""

import pytest
import torch

from asr.nn.precision import float32_settings, whole_float32


def now() -> list[str]:
    return [setting.fp32_precision for setting in float32_settings()]


def fail() -> None:
    with whole_float32():
        assert now() == ["ieee"] * 3
        raise KeyError


@pytest.mark.parametrize("matmul", ["highest", "high"])
def test_is_put_back(matmul: str) -> None:
    torch.set_float32_matmul_precision(matmul)
    try:
        before = now()
        assert "tf32" in before  # torch allows it to cuDNN by itself
        with pytest.raises(KeyError):
            fail()
        assert now() == before
        assert torch.get_float32_matmul_precision() == matmul  # the older names for it still work
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_that_overlap_end_in_any_order() -> None:
    before = now()
    assert "tf32" in before
    first, second = whole_float32(), whole_float32()  # entered and left as two threads would
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert now() == ["ieee"] * 3
    second.__exit__(None, None, None)
    assert now() == before
