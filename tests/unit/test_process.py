import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, numpy, os
from asr.process import prepare_process
prepare_process()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.empty(100 * 2**20, numpy.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults(), os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept where glibc allocates it")
@pytest.mark.parametrize(
    ("given", "kept", "policy"),
    [({}, True, "passive"), ({"MALLOC_TRIM_THRESHOLD_": "131072", "OMP_WAIT_POLICY": "active"}, False, "active")],
    ids=["alone", "the user's own settings"],
)
def test_freed_memory_is_kept_unless_the_user_chose(given: dict[str, str], kept: bool, policy: str) -> None:
    """The second array of 100 MiB is in the first one's pages, or all its pages (some may be huge ones) are new."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True)
    faults, got = done.stdout.split()
    assert (int(faults) < 10) == kept
    assert got == policy
