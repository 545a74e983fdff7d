"""How glibc is told to hand out memory, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is told is glibc's")

HEAPS = """
import ctypes, threading
from detrkit.c_memory import keep_one_heap
keep_one_heap()
thread = threading.Thread(target=lambda: bytearray(1000))
thread.start()
thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
"""

FAULTS = """
import resource
from detrkit.c_memory import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in (64 << 20, 64 << 20, 48 << 20):  # the first use of memory costs its pages in any case
    before = faults()
    bytearray(size)
    print(faults() - before)
"""


def run(code, **said):
    names = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment | said, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("said", [{}, {"MALLOC_ARENA_MAX": "8"}])
def test_threads_share_a_heap_unless_the_environment_says_otherwise(said):
    assert (run(HEAPS, **said).count("<heap nr=") > 1) == bool(said)


@pytest.mark.parametrize(
    "said", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}]
)
def test_what_is_freed_is_kept_unless_the_environment_says_otherwise(said):
    first, *again = map(int, run(FAULTS, **said).split())
    assert first > 10_000
    assert all((faults > 10_000) == bool(said) for faults in again)
