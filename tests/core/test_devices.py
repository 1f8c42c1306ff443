import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from carv_3d.core.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        a = torch.ones(16 << 20)  # 64 MiB
        b = a + 1
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
if not keep_freed_memory():
    print("no glibc")
    sys.exit()
faults()  # the heap grows
print(plain, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_memory_is_used_again_without_new_pages():
    # in a process of its own: the setting is the whole process's
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    if out == ["no", "glibc"]:
        pytest.skip("another C library")
    plain, kept = map(int, out)
    assert plain > 100  # each block was mapped anew (fewer faults where pages are huge)
    assert kept < plain / 4
