"""The GPU time loops of full recurrences, run by Triton's interpreter on the CPU against the CPU's own loops."""

from tests.support.interpreted import errors_of
from tests.support.triton_full import KINDS


def test_kernels_compute_what_the_cpu_computes() -> None:
    errors = errors_of("triton_full")
    assert {name.partition(",")[0] for name in errors} == set(KINDS)
    for name, error in errors.items():
        assert error < 5e-6, name
