"""Freed memory is returned to the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.training import memory_limit
from workers.training.memory_limit import MemoryLimit, private_bytes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def trims(monkeypatch):
    """One element for each time that memory was returned."""
    seen = []
    monkeypatch.setattr(memory_limit, "return_freed_memory", lambda: seen.append(None))
    return seen


def test_private_bytes_count_allocated_tensors():
    before = private_bytes()
    held = torch.ones(2**26)  # 256 MiB
    assert private_bytes() - before > 200 * 2**20
    del held


def test_below_the_limit_nothing_is_returned(trims):
    limit = MemoryLimit(2**60)
    for _ in range(50):
        limit.after_step()
    assert not trims


def test_above_the_limit_memory_is_returned_at_once_but_not_after_every_step(trims):
    limit, after = MemoryLimit(1), []
    for _ in range(25):
        limit.after_step()
        after.append(len(trims))
    assert after[0] == 1
    assert after[-1] == 7


def test_fragmented_memory_is_returned():
    """glibc keeps freed blocks between live ones until it is told to return them."""
    code = """
import sys
from workers.training.memory_limit import private_bytes, return_freed_memory
blocks = [bytearray(65_000) for _ in range(4000)]
pins = [bytearray(100) for _ in range(10)]
del blocks[::2], blocks[1::2], blocks[::3]
blocks = blocks[::50]
before = private_bytes()
return_freed_memory()
print(before, private_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before - 30_000_000
