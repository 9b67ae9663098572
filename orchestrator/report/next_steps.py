"""The commands that a run suggests when it ends. Their inputs are test rows of the library."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import DEFAULT_ROOT, TRACKING_VARIABLE, StoreAddress, mask_uri
from orchestrator.plan.planning import Plan
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, load_split

_MOST_TASKS = 3
_SHORT, _LONG, _LONGEST = 15, 80, 200  # characters: preferred from _SHORT to _LONG, cut after _LONGEST
_SPECIAL = set('"$`\\!')  # what a shell changes inside double quotes


def suggest_commands(plan: Plan, loaded: LoadedConfig, right: Mapping[str, Sequence[int]], *, is_newest: bool) -> str:
    """Return the section on next steps.

    Args:
        plan: The plan of the run.
        loaded: The plan's config.
        right: Test rows that the library answers rightly, by task.
        is_newest: Whether the library is the one that commands select by default.
    """
    config = plan.config
    store = _store_options(config.store)
    options = store + ("" if is_newest else f" --library {plan.folders.library}")
    rows = [
        choose_row(expert.job.data, right.get(task, ())) for task, expert in list(plan.experts.items())[:_MOST_TASKS]
    ]
    retrain = [
        f"ttmoe run {loaded.arguments} --set tasks.{task}.train.steps={max(1, expert.job.train.steps // 2)}"
        "   # retrains that expert and the router only"
        for task, expert in plan.experts.items()
        if not expert.named
    ][:1]
    commands = [
        *predict_commands(rows, options),
        f"ttmoe experts ls{options}",
        f"ttmoe ui{store}                                  # runs, experts and router in MLflow",
        *retrain,
        *(["ttmoe init                                # a config for tasks of your own"] if loaded.is_recipe else []),
    ]
    return "\n  ".join(["\nNext steps", *commands])


def _store_options(store: StoreAddress) -> str:
    """Return the options that select a store, with a blank before each. A password has to be filled in."""
    root = "" if store.root == DEFAULT_ROOT else f" --root {shlex.quote(str(store.root))}"
    if store.source == TRACKING_VARIABLE:  # it is set in this shell, but --root is stronger
        return f'{root} --uri "${TRACKING_VARIABLE}"' if root else ""
    return f"{root} --uri {shlex.quote(mask_uri(store.uri))}" if store.source == "tracking.uri" else root


def predict_commands(rows: Sequence[Example], options: str = "") -> list[str]:
    """Return commands that answer rows, to be pasted into a shell.

    Single texts are arguments of one command. A row that cannot be typed as an argument (a pair, a choice, a text with
    line breaks or control characters) is a line of JSON on standard input.

    Args:
        rows: The rows.
        options: Options of the command, with a blank before each.
    """
    typed = [_quote(row.texts[0]) for row in rows if _is_typable(row)]
    commands = [f"ttmoe predict{options} {' '.join(typed)}"] if typed else []
    for row in rows:
        if not _is_typable(row):
            commands.append(f"printf '%s\\n' {shlex.quote(_to_line(row))} | ttmoe predict{options}")
    return commands


def choose_row(data: PreparedTask, right: Sequence[int]) -> Example:
    """Choose the test row that is the easiest to type and to read; a long text is cut.

    Args:
        data: The task's data.
        right: Indices of test rows with right answers, which come first; empty if they are not known.
    """
    rows = load_split(data, "test")
    row = min([rows[index] for index in right if index < len(rows)] or rows, key=_effort)
    texts, choices = (tuple(map(_cut, parts)) for parts in (row.texts, row.choices))
    return Example(texts, choices, row.label, row.group, row.answer)


def _effort(row: Example) -> tuple[bool, bool, bool, int]:
    text = " ".join((*row.texts, *row.choices))
    return (
        not text.isprintable() or text.startswith("-"),
        bool(_SPECIAL & set(text)),
        not _SHORT <= len(text) <= _LONG,
        max(_LONG, len(text)),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else (text[: _LONGEST + 1].rsplit(maxsplit=1) or [text[:_LONGEST]])[0]


def _is_typable(row: Example) -> bool:
    text = row.texts[0]
    return len(row.texts) == 1 and not row.choices and text.isprintable() and not text.startswith("-")


def _quote(text: str) -> str:
    return shlex.quote(text) if _SPECIAL & set(text) else f'"{text}"'


def _to_line(row: Example) -> str:
    names = dict(zip(("text", "second"), row.texts, strict=False))
    columns = names | ({"choices": row.choices} if row.choices else {})
    line = json.dumps(columns, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(columns)
