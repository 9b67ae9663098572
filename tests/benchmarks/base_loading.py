"""Row ``base-loading``: peak memory of a process that loads a base of 1B weights, against the bytes of the weights.

The base has the sizes of Llama-3.2-1B and random weights in bfloat16. Pages of a file that the system may drop at any
time are told apart from memory that it must keep: of a base in the format of its file, the weights are such pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.machine import ROOT
from tests.benchmarks.table import Finding, at_most

SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True}  # fmt: skip
SHARE = 1.15  # goal
MB = 10**6

_MAKE = """
import json, sys, torch
from transformers import LlamaConfig, LlamaModel
with torch.device("meta"):
    model = LlamaModel(LlamaConfig(**json.loads(sys.argv[2])))
model = model.to(torch.bfloat16).to_empty(device="cpu")
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.02)
model.save_pretrained(sys.argv[1], max_shard_size="500MB")
"""

# Another thread reads the kernel's count every few milliseconds, because only that of all memory keeps its peak.
_LOAD = """
import json, sys, threading, time, torch
import transformers.models.llama.modeling_llama
from ttmoe.base import Base, load_body

def kilobytes():
    lines = (line.split() for line in open("/proc/self/status"))
    return {line[0][:-1]: int(line[1]) for line in lines if line[0] in ("VmHWM:", "RssAnon:")}

def watch():
    while not ended.wait(0.005):
        peak[0] = max(peak[0], kilobytes()["RssAnon"])

before, peak, ended = kilobytes(), [0], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
base = Base("folder", "llama", "", "0" * 64, sys.argv[1], sys.argv[2], 128, "last")
model = load_body(base)
with torch.no_grad():
    model(input_ids=torch.ones(1, 128, dtype=torch.long))
ended.set()
thread.join()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"weights": weights, "kept": 1024 * (peak[0] - before["RssAnon"]),
                  "all": 1024 * (kilobytes()["VmHWM"] - before["VmHWM"])}))
"""


def run() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        _python(_MAKE, scratch, json.dumps(SIZES))
        for dtype in ("bfloat16", "float32"):
            found = json.loads(_python(_LOAD, scratch, dtype).splitlines()[-1])
            # Weights in the file's own format are read where they lie: they count as all that is resident.
            peak = found["all"] if dtype == "bfloat16" else found["kept"]
            name = f"a base of 1B weights, stored in bfloat16, loaded in {dtype}: peak memory of one pass"
            yield Finding(name, f"{peak / MB:,.0f} MB", f"weights {found['weights'] / MB:,.0f} MB",
                          *at_most(peak / found["weights"], SHARE))  # fmt: skip
            yield Finding(f"the same in {dtype}, with pages of files", f"{found['all'] / MB:,.0f} MB",
                          f"{found['kept'] / MB:,.0f} MB without", "")  # fmt: skip


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=Path(ROOT), check=True, capture_output=True, text=True).stdout
