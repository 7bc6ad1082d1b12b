"""All threads of a node allocate from one heap, the only one whose free end glibc hands back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hospital_node import memory

THREAD = """
import ctypes, sys, threading
from hospital_node.memory import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
thread = threading.Thread(target=lambda: libc.malloc(100_000))
thread.start()
thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(memory._libc(), "malloc_info"), reason="glibc alone has a heap for each thread")
@pytest.mark.parametrize(("how", "heaps"), [("shared", 1), ("apart", 2)])
def test_a_thread_has_no_heap_of_its_own(how: str, heaps: int) -> None:
    said = subprocess.run([sys.executable, "-c", THREAD, how], capture_output=True, check=True, text=True).stdout
    assert min(said.count("<heap nr="), 2) == heaps
