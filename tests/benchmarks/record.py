"""What each row's last run found, where and with which code: a file a row, and the page that shows them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.table import Finding, markdown

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "results", HERE / "RESULTS.md", HERE / "NOTES.md"


@dataclass(frozen=True)
class Record:
    """One run of a row. ``machine`` are the lines that say what it ran on, ``clock`` what was measured."""

    row: str
    command: str
    date: str
    minutes: float
    clock: str
    machine: Sequence[str]
    findings: Sequence[Finding]


def keep(record: Record) -> None:
    """Write the row's file."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{record.row}.json").write_text(json.dumps(asdict(record), indent=1) + "\n")


def kept(rows: Iterable[str]) -> list[Record]:
    """The records of those rows that have one."""
    paths = [RESULTS / f"{row}.json" for row in rows]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [Record(**{**each, "findings": [Finding(**one) for one in each["findings"]]}) for each in found]


def page(records: Sequence[Record]) -> str:
    """RESULTS.md: a part for each row, with where it comes from."""
    parts = "\n\n".join(map(_part, records))
    notes = NOTES.read_text() if NOTES.exists() else ""
    return f"""# Benchmarks

`make benchmark` runs them all, `python -m tests.benchmarks NAME` one part; either writes this page anew from the last
run of every part. Every ratio is taken within one run: the subjects take turns (A B B A ...) after a warm-up, and the
ratio is the median over rounds of that within a round. Subjects that take minutes run one after another.

{parts}

{notes}"""


def _part(record: Record) -> str:
    head = f"`{record.command}`, {record.date}, {record.minutes:.0f} minutes. Times are {record.clock}."
    return f"## {record.row}\n\n{head}\n{'; '.join(record.machine)}.\n\n{markdown(record.findings)}"
