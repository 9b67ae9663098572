"""The probe of a machine's hardware agrees with torch, and does not import it where no GPU can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ttmoe.base import choose_dtype
from workers import hardware
from workers.hardware import Gpu, probe_hardware

ROOT = Path(__file__).parents[3]


def test_it_agrees_with_torch():
    found = probe_hardware()
    assert len(found.gpus) == torch.cuda.device_count()
    assert found.bf16 == (choose_dtype("auto") == "bfloat16")
    assert found.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(("flags", "native"), [("avx2 f16c", False), ("avx2 avx512_bf16", True), ("amx_tile", True)])
def test_a_cpu_computes_bfloat16_where_it_has_the_instructions(tmp_path, monkeypatch, flags, native):
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert probe_hardware().bf16 == native


def test_gpus_are_what_torch_says_and_old_ones_emulate_bfloat16(tmp_path, monkeypatch):
    known = [
        SimpleNamespace(name="T4", total_memory=16, major=7),
        SimpleNamespace(name="H100", total_memory=80, major=9),
    ]
    monkeypatch.setattr(hardware, "GPU_DEVICES", (str(tmp_path),))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", known.__getitem__)
    found = probe_hardware()
    assert found.gpus == (Gpu("T4", 16, False), Gpu("H100", 80, True))
    assert not found.computes_bf16("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch is asked about the GPU")
def test_without_a_gpu_torch_is_not_imported():
    code = "import sys; from workers.hardware import probe_hardware; probe_hardware(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
