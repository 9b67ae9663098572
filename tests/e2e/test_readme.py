"""Every command of the README is run as it stands there; runs of recipes get fewer steps on top."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import urllib.request
import uuid
from contextlib import nullcontext
from pathlib import Path

import commands
import pytest
import tiny
from commands import here, succeeded
from killed_driver import units_inline
from quickstart import ROOT, few_steps

pytestmark = pytest.mark.e2e

# What this test cannot run, and why it need not: a test elsewhere does, or it is not ours.
NOT_RUN_HERE = {
    r"git (clone|pull) .*": "not ours",
    r"cd .*": "not ours",
    r"(python3?|pip|\.venv/bin/(python|pip)) .*": "installing is what `make quickstart` and `make test` do",
    r"(source|\.) .venv/bin/activate": "tests call the script in .venv/bin by its path",
    r"export \w+=.*": "not ours",
    r"MLFLOW_TRACKING_URI=\S+ mlflow models serve .*": "tests/integration/test_serving.py serves a library so",
    r"ttmoe (submit|jobs|doctor) .*": "tests/cluster runs these on a Ray cluster of two nodes and on Slurm",
    r"ttmoe run smollm2( .*)?": "many minutes on two cores; the recipe is checked in tests/unit/orchestrator",
}
FENCE = re.compile(r"^(\s*)```+ *(\w*)[^\n]*\n(.*?)^\s*```+\s*$", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell", "console", "text")
PROGRAMS = r"(\w+=\S+ mlflow|ttmoe|make|git|cd|pip|python3?|source|export|\.venv/bin/\w+)( |$)"


def code_lines(text: str) -> list[str]:
    """The lines of fenced blocks that a shell could read, and of blocks indented by four blanks, in order."""
    found: list[tuple[int, str]] = []
    for fence in FENCE.finditer(text):
        if fence[2] in SHELLS:
            found += [(fence.start(), line.strip()) for line in fence[3].replace("\\\n", " ").splitlines()]
    rest = FENCE.sub(lambda fence: re.sub(r"[^\n]", "", fence[0]).ljust(len(fence[0])), text)
    for line in re.finditer(r"^(?: {4}|\t)((?:.*\\\n)*.*)$", rest, re.MULTILINE):
        found.append((line.start(), line[1].replace("\\\n", " ").strip()))
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def readme_commands(text: str) -> list[str]:
    """The command lines among the code, without prompts and comments."""
    lines = [re.sub(r"^\$ ", "", line) for line in code_lines(text)]
    shown = [line for line in lines if re.match(PROGRAMS, line)]
    return [shlex.join(shlex.split(line, comments=True)) for line in shown]


COMMANDS = readme_commands((ROOT / "README.md").read_text())


def test_commands_are_found_wherever_they_stand():
    text = """
        See `ttmoe ui`.

            make quickstart     # installs
            $ ttmoe predict "two words" \\
                --root there

        ```sh
        ttmoe run quickstart
        library quickstart on a base
        ```
        ```python
        make = 1
        ```
        """
    found = readme_commands(re.sub(r"^ {8}", "", text, flags=re.MULTILINE))
    assert found == ["make quickstart", "ttmoe predict 'two words' --root there", "ttmoe run quickstart"]


def test_the_readme_begins_with_the_two_commands():
    assert {"make quickstart", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_readme(command, home, first, cluster):
    """In the order of the README, all in the folder of the first run."""
    succeeded(first)
    if any(re.fullmatch(pattern, command) for pattern in NOT_RUN_HERE):
        return
    program, *arguments = shlex.split(command)
    if program == "make":
        check_make(arguments)
    elif program == "ttmoe" and arguments[:1] == ["ui"]:
        check_ui(home, arguments)
    elif program == "ttmoe":
        if "--file" in arguments:
            (home / arguments[arguments.index("--file") + 1]).write_text('{"text": "where is the louvre"}\n')
        if arguments[0] == "init":
            write_data(home, arguments[1:])
        with units_inline() if arguments[0] == "run" else nullcontext():  # `first` had workers of its own
            succeeded(here(home, *arguments, *fewer(home, arguments)))
    else:
        pytest.fail(f"no test runs `{command}`: teach this one to, or say in NOT_RUN_HERE why it need not")


def write_data(home: Path, names: list[str]) -> None:
    """The data files of an ``init``, a task in each."""
    for name in (each for each in names if each.endswith((".csv", ".jsonl"))):
        if name.endswith(".jsonl"):
            tiny.write_texts(home / name, tiny.ANIMALS, "south")
            continue
        rows = [f'{i},"{text}",{word}' for i, (text, word) in enumerate(tiny.sentences(240, tiny.COLOURS, "north"))]
        (home / name).write_text("\n".join(["id,review,sentiment", *rows]))


def fewer(home: Path, arguments: list[str]) -> list[str]:
    """What keeps a run short."""
    if arguments[0] == "tune":
        # What decides an expert may not be set beside --apply. That winners are confirmed is tested in test_tune.py.
        kept = [each for each in few_steps() if each.startswith(("search.", "storage."))]
        few = [*kept, "search.confirm=0", "search.ranks=[2, 4]", "search.references=[]", "search.train.batch_size=8"]
        return [word for setting in few for word in ("--set", setting)]
    if arguments[0] not in ("run", "plan") or {"--help", "--nodes"} & set(arguments):
        return []
    if arguments[1] == "quickstart":
        changed = [word for word in arguments if re.fullmatch(r"tasks\.\w+\.train\.steps=\d+", word)]
        few = [f"{key.split('=')[0]}=10" for key in changed] + ["router.compare_depths=false"] * bool(changed)
        return [*few_steps(), *(word for setting in few for word in ("--set", setting))]
    config = home / arguments[1]
    assert config.is_file(), f"{config.name} is in no earlier command of the README"
    return ["--set", "train.steps=10", "--set", "router.epochs=3"]


def check_make(targets: list[str]) -> None:
    """The target is there and its commands can be told; what they are is run by the tests of this tier."""
    # `make test` runs this test: the inner make must not take itself for a part of the outer one.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    last = {"quickstart": "ttmoe run quickstart", "test": "python -m pytest"}
    for target in targets:
        assert last.get(target, "") in done.stdout.splitlines()[-1]


def check_ui(home: Path, arguments: list[str]) -> None:
    """It serves this store's pages until Ctrl-C."""
    from orchestrator.progress.mlflow_ui import free_port

    mark = f"ui-{uuid.uuid4()}"
    if "--port" not in arguments:
        arguments = [*arguments, "--port", str(free_port(5800))]
    port = arguments[arguments.index("--port") + 1]
    with (home / "ui.txt").open("w") as out:
        env = commands.environment(TTMOE_TEST=mark, PYTHONUNBUFFERED="1")
        server = subprocess.Popen([commands.SCRIPT, *arguments], cwd=home, env=env, stdout=out, stderr=out)
        try:
            said = lambda: (home / "ui.txt").read_text()  # noqa: E731
            assert tiny.wait_for(lambda: "MLflow UI: http" in said() or server.poll() is not None, 120)
            assert server.poll() is None, said()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
                assert answer.status == 200
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.wait()
    assert tiny.left_running(mark) == []


def test_the_script_that_ci_calls_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script.splitlines()
    assert "make test" in COMMANDS


def test_the_python_of_the_readme_runs(base_folder, capsys):
    """The bank of experts; tests/integration/test_run.py runs the other block, on its tiny library."""
    other, block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "orchestrator.api" in other
    assert "path/to/base" in block
    exec(block.replace("path/to/base", str(base_folder)), {})
    assert capsys.readouterr().out.strip() in ("['glad']", "['sad']")
