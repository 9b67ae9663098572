"""A small library for jobs of a cluster: base, data and a config with the cluster's profile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tiny

TASKS = ("t0", "t1", "t2", "t3")


def write_submitted_library(folder: Path, base_folder: Path, clusters: dict[str, dict[str, Any]]) -> Path:
    """Write the library of TASKS into ``folder``, with the config ``tiny.yaml``; return the folder."""
    shutil.copytree(base_folder, folder / "base")
    for task in TASKS:
        tiny.write_texts(folder / f"{task}.jsonl", tiny.COLOURS, "north", 90)
    config = {
        "library": "tiny",
        "base": {"folder": "base", "max_length": 32, "dtype": "float32"},
        "adapter": {"rank": 2},
        "train": {"steps": 60, "batch_size": 8, "eval_every": 30},
        "tasks": {task: tiny.text_task(Path(f"{task}.jsonl")) | {"train": {"seed": i}} for i, task in enumerate(TASKS)},
        "router": {"batch_size": 32, "epochs": 1},
        "clusters": clusters,
    }
    (folder / "tiny.yaml").write_text(json.dumps(config))
    return folder
