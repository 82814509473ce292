"""Batch norm's GPU kernels, run by Triton's interpreter on the CPU against float64."""

from tests.support.interpreted import errors_of


def test_kernels_compute_what_float64_gives() -> None:
    errors = errors_of("triton_batch_norm")
    assert len(errors) == 6 * (4 * 2 * 3 + 4) + 8 * 4
    for name, error in errors.items():
        truncated = "bfloat16: y" in name or "bfloat16: d x" in name  # so does the interpreter; a GPU rounds
        assert error < (2**-7 if truncated else 1e-5), name
