"""The GPU kernel of CTC's recursion, run by Triton's interpreter on the CPU."""

from tests.support.interpreted import errors_of


def test_the_kernel_computes_torchs_loss_and_gradient() -> None:
    errors = errors_of("triton_ctc")
    assert len(errors) == 3
    assert max(max(pair) for pair in errors.values()) < 1e-10
