"""What a run suggests next: commands that a shell passes on unchanged, with rows of the library itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import find_store
from orchestrator.predict.input_columns import InputColumns
from orchestrator.report import next_steps
from orchestrator.report.next_steps import choose_row, predict_commands, suggest_commands
from ttmoe.encoding import Choice
from workers.data.examples import Example

FAKE = """#!/bin/sh
printf '%s\\0' "$MLFLOW_TRACKING_URI" "$@"
printf 'stdin\\0'
if [ "$2" != -- ] && [ ! -t 0 ]; then cat; fi
"""
SHELLS = {
    "sh": ["sh"],
    "bash": ["bash", "--norc"],
    "bash as typed": ["bash", "--norc", "-o", "history", "-o", "histexpand"],
}
TEXTS = (
    "where is the louvre",
    "it's",
    'she said "no"',
    "costs $HOME or ${x} or $(date) or `date`",
    "wow!! !x !$",
    'it\'s 5$ "off" today!',
    "back\\slash \\n \\",
    "* ? [a] {a,b} ~ # ; & | < > ( )",
    "  kept   blanks",
    "%s %d",
    "é 中文 🙂 \ufffd",
)


def text_row(text: str) -> Example:
    return Example((text,), (), 0, "")


@pytest.fixture(params=SHELLS)
def typed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Paste a command into a shell in which ``ttmoe`` prints what it gets: variable, arguments, standard input."""
    (tmp_path / "ttmoe").write_text(FAKE)
    (tmp_path / "ttmoe").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HISTFILE": "/dev/null", "MLFLOW_TRACKING_URI": ""}
    # Where a command reads no pipe, it must not read the rest of the shell's own input.
    script = lambda command: f"{command}\n" if "|" in command else f"{command} </dev/null\n"  # noqa: E731

    def run(command: str) -> tuple[str, list[str], str]:
        assert command.isprintable()  # one line
        done = subprocess.run(SHELLS[request.param], input=script(command), cwd=tmp_path, env=env,
                              capture_output=True, text=True, check=True)  # fmt: skip
        words, _, stdin = done.stdout.partition("\0stdin\0")
        uri, *arguments = words.split("\0")
        return uri, arguments, stdin

    return run


def test_a_text_arrives_unchanged(typed: Any) -> None:
    (command,) = predict_commands([text_row(text) for text in TEXTS])
    assert typed(command) == ("", ["predict", *TEXTS], "")


ROWS = [
    (text_row("two\nlines\tand \x1b[31m a colour"), "two\nlines\tand \x1b[31m a colour"),
    (text_row("--help"), "--help"),
    (Example(("it's", 'a "pair" for $5!\\n'), (), 0, ""), ("it's", 'a "pair" for $5!\\n')),
    (Example(("which?",), ("it's", "中文", "!x"), 0, ""), Choice("which?", ("it's", "中文", "!x"))),
    (Example(("line\u2028break",), (), 0, ""), "line\u2028break"),
]


@pytest.mark.parametrize(("row", "wanted"), ROWS)
def test_a_row_that_cannot_be_typed_is_a_line_on_standard_input(typed: Any, row: Example, wanted: Any) -> None:
    (command,) = predict_commands([row], " --root 'my runs'")
    _, arguments, line = typed(command)
    assert arguments == ["predict", "--root", "my runs"]
    assert line.count("\n") == 1
    assert InputColumns().input_of(json.loads(line), "") == wanted


def test_texts_share_a_command_and_other_rows_have_their_own() -> None:
    commands = predict_commands([text_row("one"), ROWS[2][0], text_row("two"), ROWS[3][0]])
    assert [command.startswith("printf") for command in commands] == [False, True, True]
    assert commands[0] == 'ttmoe predict "one" "two"'


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a task whose test split has these rows."""
    monkeypatch.setattr(next_steps, "load_split", lambda data, split: data.rows if split == "test" else [])
    return lambda *rows: SimpleNamespace(rows=[text_row(row) if isinstance(row, str) else row for row in rows])


@pytest.mark.parametrize(
    ("rows", "right", "chosen"),
    [
        (["a first plain row", "a second plain row"], [], "a first plain row"),
        (["a first plain row", "a second plain row"], [1], "a second plain row"),
        (["a first plain row", "a second plain row"], [7], "a first plain row"),  # of other data
        (["who?", "where is the louvre", "when"], [], "where is the louvre"),
        (["what is that for $5!", "where is the louvre"], [], "where is the louvre"),
        (["- an item of a list", "where are\nwe", "for $5!"], [], "for $5!"),
        (["x" * 150, "y " * 45 + "z", "z" * 120], [], "y " * 45 + "z"),
        (["word " * 60 + "end"], [], ("word " * 40).strip()),
    ],
)
def test_the_row_is_right_plain_and_short(task: Any, rows: list[str], right: list[int], chosen: str) -> None:
    assert choose_row(task(*rows), right).texts == (chosen,)


def test_a_long_pair_or_choice_is_cut(task: Any) -> None:
    row = choose_row(task(Example(("a " * 300,), ("b " * 300, "c"), 2, "g", "d")), [])
    assert row == Example((("a " * 100).strip(),), (("b " * 100).strip(), "c"), 2, "g", "d")


def plan(task: Any, root: str = "runs", uri: str | None = None) -> Any:
    data = [task(f"a text of task {i}") for i in range(5)]
    experts = {f"t{i}": SimpleNamespace(job=SimpleNamespace(data=data[i], train=SimpleNamespace(steps=7)), named=None)
               for i in range(5)}  # fmt: skip
    config = SimpleNamespace(store=find_store(config_uri=uri, config_root=Path(root)))
    return SimpleNamespace(config=config, experts=experts, folders=SimpleNamespace(library="lib"))


def of(source: str, *overrides: str) -> LoadedConfig:
    return LoadedConfig(cast(Any, None), source, "", overrides)


def test_a_long_blank_text_is_cut_too() -> None:
    assert len(next_steps._cut(" " * 300 + "end")) == 200


def test_the_texts_are_those_of_the_first_tasks(task: Any) -> None:
    lines = suggest_commands(plan(task), of("my config.yaml", "train.lr=1"), {}, is_newest=True).splitlines()
    assert lines[:4] == [
        "", "Next steps", '  ttmoe predict "a text of task 0" "a text of task 1" "a text of task 2"',
        "  ttmoe experts ls",
    ]  # fmt: skip
    assert shlex.split(lines[5], comments=True) == ["ttmoe", "run", "my config.yaml", "--set", "train.lr=1", "--set",
                                                     "tasks.t0.train.steps=3"]  # fmt: skip
    assert not any("ttmoe init" in line for line in lines)


def test_commands_name_root_store_and_library_where_they_are_not_the_defaults(task: Any) -> None:
    text = suggest_commands(plan(task, "my runs", "http://h:1/?a=b&c"), of("quickstart"), {}, is_newest=False)
    assert "  ttmoe predict --root 'my runs' --uri 'http://h:1/?a=b&c' --library lib \"a text" in text
    assert "  ttmoe experts ls --root 'my runs' --uri 'http://h:1/?a=b&c' --library lib\n" in text
    assert "  ttmoe ui --root 'my runs' --uri 'http://h:1/?a=b&c' " in text


def test_commands_follow_the_variable_and_show_no_password(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:geheim@h:1")
    assert "  ttmoe experts ls\n" in suggest_commands(plan(task), of("quickstart"), {}, is_newest=True)
    elsewhere = suggest_commands(plan(task, "my runs"), of("quickstart"), {}, is_newest=True)
    assert "  ttmoe experts ls --root 'my runs' --uri \"$MLFLOW_TRACKING_URI\"\n" in elsewhere
    configured = suggest_commands(plan(task, "runs", "http://ann:geheim@h:1"), of("quickstart"), {}, is_newest=True)
    assert "  ttmoe experts ls --uri 'http://***@h:1'\n" in configured
    assert "geheim" not in elsewhere + configured
