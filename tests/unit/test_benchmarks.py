"""The benchmarks' own code: every row can be found, and findings become a table. Nothing is timed here."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from tests.benchmarks import gpu, layer, step
from tests.benchmarks.__main__ import ROWS, row
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import BUSY, QUICK, Times, interleave
from tests.benchmarks.random_bases import LLAMA_1B
from tests.benchmarks.record import Record, keep, kept, page
from tests.benchmarks.table import Finding, at_least, at_most, markdown, plain


@pytest.mark.parametrize("name", ROWS)
def test_every_row_can_be_found(name: str) -> None:
    assert callable(row(name))


def test_a_table_says_whether_goals_are_met() -> None:
    findings = [Finding("a|b", "1 s", "2 s", *at_most(0.5, 1.0)), Finding("c", "3 s", "2 s", *at_most(1.5, 1.0))]
    lines = markdown(findings).splitlines()
    assert lines[2] == "| a\\|b | 1 s | 2 s | 0.50 | ≤ 1.00 | yes |"
    assert lines[3].endswith("| **no** |")
    assert len(plain(findings).splitlines()) == 3
    record = Record("a", "the command", "a day", 1.0, "wall time", ["a machine"], findings)
    assert markdown(findings) in page([record])
    assert "the command" in page([record])


def test_a_row_that_runs_again_replaces_its_own_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.record.RESULTS", tmp_path)
    first, second = Finding("a", "1 s", "2 s", *at_most(0.5, 1.0)), Finding("b", "3 s", "2 s", *at_least(1.5, 2))
    made = {row: Record(row, "command", "a day", 1.0, "wall time", ["a machine"], [first]) for row in ("step", "layer")}
    for record in made.values():
        keep(record)
    again = replace(made["step"], findings=[second])
    keep(again)
    assert kept(["layer", "step", "never run"]) == [made["layer"], again]


def test_a_ratio_is_judged_as_it_is_printed() -> None:
    assert at_most(1.004, 1.0) == ("1.00", "≤ 1.00", True)
    assert at_most(1.006, 1.0) == ("1.01", "≤ 1.00", False)


def test_ratios_are_taken_within_a_round() -> None:
    times = Times({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]})
    assert times.ratio("a", "b") == 0.5


@pytest.mark.parametrize(("busy", "threads"), [("", [1, 2]), ("1", [1])])
def test_the_step_in_fp32_is_measured_with_one_thread_and_with_two(
    monkeypatch: pytest.MonkeyPatch, busy: str, threads: list[int]
) -> None:
    """Not with two where only CPU time tells anything."""
    seen: list[int] = []

    def take(subjects: dict, **more: object) -> Times:
        seen.append(torch.get_num_threads())
        return Times({name: [1.0, 1.0] for name in subjects})

    monkeypatch.setenv(BUSY, busy)
    monkeypatch.setattr(step, "interleave", take)
    monkeypatch.setattr(step, "choose_dtype", lambda dtype: "float32")
    monkeypatch.setattr(step, "SUBJECTS", dict.fromkeys(step.SUBJECTS, lambda dtype: None))
    before, found = torch.get_num_threads(), list(step.run())
    assert seen == threads
    assert torch.get_num_threads() == before
    assert {finding.what.split("float32, ")[1][:8] for finding in found} == {f"{n} thread" for n in threads}


def test_subjects_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0, rounds=(2, 2), warm=1)
    assert "".join(order) == "ab" + "ab" + "ba"


def test_a_childs_peak_is_its_own() -> None:
    """Linux gives a child its parent's ru_maxrss, which once made every subject of the memory row look alike."""
    code = (
        "from tests.benchmarks.machine import peak_bytes; before = peak_bytes(); "
        "x = bytearray(2**28); print(before, peak_bytes())"
    )
    large = bytearray(2**30)
    large[::4096] = b"x" * len(large[::4096])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(large)
    assert after - before > 2**27


TINY = {**LLAMA_1B, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 96, "vocab_size": 100}  # fmt: skip


def _in_this_process(command: list[str], **more: object) -> SimpleNamespace:
    """Run ``python -c`` here: the imports of another process take ten seconds."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys, "argv", ["-c", *command[3:]])
        exec(command[2], {})
    return SimpleNamespace(stdout=said.getvalue())


@pytest.mark.parametrize("part", gpu.PARTS, ids=lambda part: part.__name__)
@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:.*is_gradient_checkpointing")
def test_every_part_that_needs_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, part: gpu.Part) -> None:
    """On a tiny base; what it finds there means nothing. Compilation takes half a minute, and has tests of its own."""
    monkeypatch.setenv(QUICK, "1")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    monkeypatch.setattr(layer, "TOKENS", (8, 16))
    monkeypatch.setattr(gpu.subprocess, "run", _in_this_process)
    scale = gpu.Scale("cpu", (("tiny", TINY),), tokens=12, rows=2, short=(3, 6), experts=2, steps=3, loaded=4,
                      seconds=0.01, dtype="float32")  # fmt: skip
    monkeypatch.setattr(gpu, "PARTS", [part])
    findings = list(gpu.run(scale))
    assert findings
    assert not [finding for finding in findings if finding.ours in ("failed", "not run")]


def test_without_a_gpu_its_parts_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [finding.ours for finding in gpu.run()] == ["not run"] * len(gpu.PARTS)


def test_a_part_that_fails_is_a_line_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scale: gpu.Scale) -> Iterator[Finding]:
        """A part."""
        raise RuntimeError("no memory")

    def sound(scale: gpu.Scale) -> Iterator[Finding]:
        """Another."""
        yield Finding("fine", "1 s", "2 s", "0.5")

    monkeypatch.setattr(gpu, "PARTS", [broken, sound])
    found = list(gpu.run(gpu.Scale("cpu")))
    assert [(finding.ours, finding.met) for finding in found] == [("failed", False), ("1 s", None)]
