"""What a process does with memory that it has freed."""

import subprocess
import sys

import pytest

from llm import memory

PROBE = """
import sys, torch
from pathlib import Path
from llm.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "kept":
    keep_freed_memory()
blocks = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each
before = resident()
del blocks
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_and_otherwise_given_back():
    given_back = {
        how: int(subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "usual")
    }
    assert given_back["kept"] < 2**24 < 2**27 < given_back["usual"]


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("a library was asked for"))
    memory.keep_freed_memory()
