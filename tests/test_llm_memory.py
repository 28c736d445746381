"""What a process does with memory that it has freed, and what reads its logits."""

import subprocess
import sys

import pytest
import torch

from llm import memory, token_stats

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


def test_triton_is_refused_on_a_processor():
    with pytest.raises(ValueError, match="runs on CUDA only, the device is cpu; use token_kernel tiles"):
        memory.choose_token_kernel("triton", torch.device("cpu"))


def test_triton_is_put_in_place_on_a_gpu_and_taken_out_again(monkeypatch):
    kernels = pytest.importorskip("llm.token_stats_triton")
    monkeypatch.setattr(kernels, "install", lambda device: token_stats.TILES.update({device: kernels.fused}))
    memory.choose_token_kernel("triton", torch.device("cuda:1"))
    assert {"cuda": kernels.fused} == token_stats.TILES
    memory.choose_token_kernel("tiles", torch.device("cuda:1"))
    assert token_stats.TILES == {}


def test_without_triton_the_line_to_type_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm.token_stats_triton", None)
    monkeypatch.delattr("llm.token_stats_triton", raising=False)
    with pytest.raises(ValueError, match="pip install triton"):
        memory.choose_token_kernel("triton", torch.device("cuda"))
