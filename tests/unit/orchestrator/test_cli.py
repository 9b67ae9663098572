"""The command line: fast help, readable errors, exit codes, and the arguments of the functions it calls."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app, startup
from orchestrator.config.loading import STARTER, recipe_text
from orchestrator.config.store_address import StoreAddress, find_store
from orchestrator.predict.input_columns import InputColumns
from orchestrator.predict.request import PredictRequest
from orchestrator.run import termination
from ttmoe.errors import InputError

HEAVY = {"torch", "ray", "mlflow", "transformers", "datasets", "pydantic", "yaml", "numpy", "rich"}
IMPORTS = """
import sys
from orchestrator.cli import app
try:
    app(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""


def ttmoe(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple]]:
    """Replace a module's function by one that records its calls; return the list of their arguments."""

    replaced: dict[str, types.ModuleType] = {}

    def put(module: str, function: str, error: BaseException | None = None) -> list[tuple]:
        calls: list[tuple] = []

        def record(*arguments: Any, **options: Any) -> None:
            calls.append((*arguments, *options.values()))
            if error:
                raise error

        fake = replaced.setdefault(module, types.ModuleType(module))
        setattr(fake, function, record)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return put


def imported(*arguments: str) -> tuple[str, set[str]]:
    """Return what a command prints, and the packages that it imports."""
    done = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, {name.partition(".")[0] for name in done.stderr.split()}


def test_help_imports_nothing_heavy() -> None:
    printed, packages = imported("--help")
    assert "run " in printed
    assert not HEAVY & packages


def test_the_functions_for_python_import_nothing_heavy_before_they_are_called() -> None:
    code = "import sys; from orchestrator.api import plan, predict, run, status, submit; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.partition(".")[0] for name in done.stdout.split()}


def test_the_check_of_a_node_needs_no_torch() -> None:
    code = "import sys; from orchestrator.run.node_checks import check_node; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "mlflow", "ray"} & set(done.stdout.split())


def test_the_schema_needs_pydantic_and_yaml_alone() -> None:
    printed, packages = imported("config", "schema")
    assert '"$schema"' in printed
    assert HEAVY & packages <= {"pydantic", "yaml"}


READ = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count(), gc.get_stats()[2]["collections"]))
from orchestrator.cli.startup import import_registry, prepare_command
prepare_command()
import_registry()
from orchestrator.config import loading
from orchestrator.experts import listing, promoting, removing, showing
from orchestrator.progress import mlflow_ui, status, status_screen
print(*sys.modules)
import pandas, mlflow
print(pandas.DataFrame)
"""


def test_commands_that_touch_no_tensor_import_none_of_torch_ray_and_data_packages() -> None:
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    modules, later, ending = done.stdout.splitlines()
    imported = {name.partition(".")[0] for name in modules.split()}
    assert "mlflow" in imported
    assert not {"torch", "ray", "transformers", "datasets", "numpy", "pandas", "pyarrow", "scipy"} & imported
    assert "pandas" in later  # what was hidden from MLflow can be imported
    frozen, collections = map(int, ending.split())
    assert frozen > 100_000  # what the end of the process does not collect
    assert collections < 5


def test_only_a_process_of_one_command_hides_packages_from_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    for name in ("mlflow", *startup.DATA_PACKAGES):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(startup, "import_module", lambda _: seen.append(set(startup.DATA_PACKAGES) & set(sys.modules)))
    startup.import_registry()
    assert seen == []
    monkeypatch.setattr(startup, "_is_command", True)
    startup.import_registry()
    assert seen == [set(startup.DATA_PACKAGES)]
    assert not set(startup.DATA_PACKAGES) & set(sys.modules)
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    startup.import_registry()
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [(["status"], "api", "status"), (["predict", "a"], "predict.dispatch", "run_request"),
     (["experts", "ls"], "experts.listing", "print_experts"),
     (["experts", "show", "a"], "experts.showing", "show_expert"),
     (["experts", "promote", "a"], "experts.promoting", "promote_expert"),
     (["experts", "rm", "a"], "experts.removing", "remove_expert")],
)  # fmt: skip
def test_commands_that_read_import_the_registry_first(replace, monkeypatch, arguments, module, function) -> None:
    replace("orchestrator.progress.status_screen", "show_status")
    calls = replace(f"orchestrator.{module}", function)
    monkeypatch.setattr(f"orchestrator.cli.{'expert_' * (arguments[0] == 'experts')}commands.import_registry",
                        lambda: calls.append("registry"))  # fmt: skip
    assert ttmoe(*arguments).exit_code == 0
    assert (calls[0], len(calls)) == ("registry", 2)


def test_help_answers_in_half_a_second() -> None:
    """Of processor time: the tests of other processes may hold it up."""

    def seconds() -> float:
        before = os.times()
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_version() -> None:
    result = ttmoe("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("ttmoe 0.")


def test_init_writes_the_starter_and_prints_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.yaml"
    result = ttmoe("init", str(path))
    assert result.exit_code == 0
    assert path.read_text() == recipe_text(STARTER)
    assert f"ttmoe run {path}" in result.stdout


def test_init_writes_the_schema_that_the_config_refers_to(tmp_path: Path) -> None:
    """By a name without a folder: the two files are shared with people who installed ttmoe elsewhere, or not at all."""
    ttmoe("init", str(tmp_path / "mine.yaml"))
    first = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert name == "ttmoe.schema.json"
    assert (tmp_path / name).read_text() == ttmoe("config", "schema").stdout


def test_init_replaces_a_file_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "ttmoe.yaml").write_text("mine")
    refused = ttmoe("init", str(tmp_path))
    assert (refused.exit_code, (tmp_path / "ttmoe.yaml").read_text()) == (2, "mine")
    assert "--force" in refused.stderr
    assert ttmoe("init", str(tmp_path), "--force").exit_code == 0
    assert (tmp_path / "ttmoe.yaml").read_text() == recipe_text(STARTER)


def test_run_passes_the_loaded_config(replace: Callable[..., list[tuple]]) -> None:
    calls = replace("orchestrator.run.driver", "run_library")
    result = ttmoe("run", "quickstart", "--set", "train.steps=3", "--set", "seed=4")
    assert result.exit_code == 0, result.stderr
    loaded = calls[0][0]
    assert (loaded.source_name, loaded.config.train.steps, loaded.config.seed) == ("quickstart", 3, 4)


def test_a_config_error_is_a_message_and_starts_nothing(replace: Callable[..., list[tuple]]) -> None:
    calls = replace("orchestrator.run.driver", "run_library")
    result = ttmoe("run", "quickstart", "--set", "train.stesp=3")
    expected = "error: --set train.stesp=3, train.stesp\n  unknown key (its value: 3)\n  did you mean `steps`?\n"
    assert (result.exit_code, result.stderr, result.stdout, calls) == (2, expected, "", [])


def test_an_error_without_location_and_fix(replace: Callable[..., list[tuple]]) -> None:
    replace("orchestrator.run.driver", "run_library", InputError("it is wrong"))
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, result.stderr) == (2, "error: it is wrong\n")


def test_ctrl_c_is_one_line(replace: Callable[..., list[tuple]]) -> None:
    replace("orchestrator.run.driver", "run_library", KeyboardInterrupt())
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, result.stderr) == (130, "interrupted; repeat the command to continue\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_ctrl_c_with_a_code_of_its_own(
    replace: Callable[..., list[tuple]], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr(termination, "_terminated_by", 0)
    with pytest.raises(KeyboardInterrupt):
        termination._terminate(number, None)
    replace("orchestrator.run.driver", "run_library", KeyboardInterrupt())
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, result.stderr) == (code, "stopped; repeat the command to continue\n")


@pytest.mark.parametrize(("before", "end"), [("SIG_DFL", "1"), ("SIG_IGN", "goes on")])
def test_a_closed_terminal_stops_a_command_without_nohup(before: str, end: str) -> None:
    code = f"""
import os, signal
from orchestrator.cli import startup
from orchestrator.run import termination
signal.signal(signal.SIGHUP, signal.{before})
startup.prepare_command()
try:
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
except KeyboardInterrupt:
    print(int(termination.terminated_by()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{end}\n"), done.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_may_not_be_written_is_one_error(replace: Callable[..., list[tuple]], number: int) -> None:
    replace("orchestrator.run.driver", "run_library", OSError(number, os.strerror(number), "a/file"))
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert result.stderr.startswith(f"error: a/file\n  {os.strerror(number)}\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("files", "head"), [((), ""), (("from", None, "to"), "to\n  ")], ids=["write", "copy"])
def test_a_disk_that_fills_up_is_one_error(
    replace: Callable[..., list[tuple]], number: int, files: tuple, head: str
) -> None:
    """An error of ``write`` names no file; that of a copy names both, and the second one is on the full disk."""
    replace("orchestrator.run.driver", "run_library", OSError(number, os.strerror(number), *files))
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert result.stderr.startswith(f"error: {head}{os.strerror(number)}\n")
    assert "free space" in result.stderr


def test_a_folder_that_is_copied_to_a_full_disk_is_one_error(replace: Callable[..., list[tuple]]) -> None:
    files = [(f"from/{i}", f"to/{i}", f"[Errno 28] No space left on device: 'to/{i}'") for i in range(3)]
    replace("orchestrator.run.driver", "run_library", shutil.Error(files))
    result = ttmoe("run", "quickstart")
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert result.stderr.startswith("error: to/0\n  No space left on device\n")


@pytest.mark.parametrize(
    ("command", "named"),
    [(("plan", "quickstart", "--set", "storage.root=d.csv"), "storage.root"),
     (("plan", "quickstart", "--set", "storage.root=/proc/x"), "storage.root"),
     (("plan", "quickstart", "--set", "storage.cache=/proc/c"), "storage.cache"),
     (("run", "quickstart", "--set", "storage.root=d.csv", "--set", "storage.cache=c"), "storage.root"),
     (("run", "quickstart", "--set", "storage.cache=/proc/c"), "storage.cache"),
     (("init", "/proc/x.yaml"), "/proc/x.yaml"), (("init", "d.csv/x.yaml"), "d.csv/x.yaml")],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").touch()
    result = ttmoe(*command)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {named}\n")
    assert len(result.stderr.splitlines()) == 3


def test_a_defect_is_one_line_and_its_traceback_a_file(
    replace: Callable[..., list[tuple]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replace("orchestrator.run.driver", "run_library", ZeroDivisionError("a defect"))
    result = ttmoe("run", "quickstart")
    (log,) = tmp_path.glob("ttmoe-*.log")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: ZeroDivisionError: a defect"
    assert str(log) in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in log.read_text()


def test_experts_predict_and_ui_pass_their_options(
    replace: Callable[..., list[tuple]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = replace("orchestrator.experts.listing", "print_experts")
    filed = replace("orchestrator.predict.files", "predict_files")
    spread = replace("orchestrator.predict.ray_data", "predict_on_ray")
    predicted = replace("orchestrator.predict.texts", "predict_texts")
    streamed = replace("orchestrator.predict.texts", "predict_stream")
    named = ("--file", "in.csv", "--out", "out", "--text", "q", "--choices", "a", "--choices", "b", "--device", "cpu")
    opened = replace("orchestrator.progress.mlflow_ui", "open_ui")
    results = [
        ttmoe("experts", "ls"),
        ttmoe("predict", "one", "two words", "--library", "mine", "--root", "there"),
        ttmoe("predict", *named, "--force", "--batch-size", "8"),
        ttmoe("predict", *named, "--ray", "--workers", "3", "--gpus-per-worker", "0.5"),
        ttmoe("predict", "--second", "s"),
        ttmoe("predict", "-"),
        ttmoe("ui", "--port", "5001"),
        ttmoe("ui", "--uri", "http://h:1"),
    ]
    assert {result.exit_code for result in results} == {0}, results
    assert listed[0][:2] == (find_store(), None)
    assert predicted[0][0] == PredictRequest(("one", "two words"), library="mine", store=find_store(root=Path("there")))
    columns = InputColumns("q", None, ("a", "b"))
    of_file = PredictRequest(file="in.csv", out=Path("out"), text="q", choices=("a", "b"), device="cpu")
    assert filed[0][0] == dataclasses.replace(of_file, force=True, batch_size=8)
    assert spread[0][0] == dataclasses.replace(of_file, on_ray=True, workers=3, gpus=0.5)
    assert of_file.columns == columns
    assert [call[0] for call in streamed] == [PredictRequest(second="s"), PredictRequest(("-",))]
    assert opened[0][:2] == (StoreAddress(Path("runs"), f"sqlite:///{tmp_path}/runs/mlflow.db", "storage.root"), 5001)
    assert opened[1][0].uri == "http://h:1"
    assert results[1].stderr == f"store: sqlite:///{tmp_path}/there/mlflow.db (--root)\n"


def test_doctor_passes_its_options_and_its_exit_code(
    replace: Callable[..., list[tuple]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace("orchestrator.doctor.cluster_job", "examine_cluster")
    drilled = replace("orchestrator.doctor.drill", "run_drill")
    examined = replace("orchestrator.doctor.examination", "examine")
    shown = replace("orchestrator.doctor.check_screen", "show_checks")  # returns None: a check failed
    address = ("--cluster", "http://head:8265")
    results = [ttmoe("doctor", "quickstart", "--json"), ttmoe("doctor", "--drill", "--keep"),
               ttmoe("doctor", *address), ttmoe("doctor", "--drill", "--json", *address)]  # fmt: skip
    assert [result.exit_code for result in results] == [1, 1, 1, 1], results
    assert examined[0][0].storage.root == "runs"
    assert drilled[0][1] is True
    assert [call[-1] for call in shown] == [True, False]
    assert [call[2] for call in there] == [["doctor"], ["doctor", "--drill"]]
    assert [call[-1] for call in there] == [False, True]
    refused = ttmoe("doctor", "--keep")
    assert (refused.exit_code, "--keep requires --drill" in refused.stderr) == (2, True)


def test_commands_without_a_config_name_their_store_except_in_json(
    replace: Callable[..., list[tuple]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:geheim@h:1")
    for module, function in (
        ("progress.status_screen", "show_status"), ("api", "status"), ("predict.dispatch", "run_request"),
        ("progress.mlflow_ui", "open_ui"), ("experts.listing", "print_experts"), ("experts.showing", "show_expert"),
        ("experts.verifying", "verify_experts"), ("experts.promoting", "promote_expert"),
        ("experts.removing", "remove_expert"), ("experts.exporting", "export_expert"),
        ("experts.importing", "import_expert"),
    ):  # fmt: skip
        replace(f"orchestrator.{module}", function)
    experts = (("ls",), ("show", "a"), ("verify",), ("promote", "a"), ("rm", "a"), ("export", "a", "f"),
               ("import", "f", "--task", "a"))  # fmt: skip
    for command in (("status",), ("predict", "a"), ("ui",), *(("experts", *each) for each in experts)):
        result = ttmoe(*command)
        assert (result.stdout, result.stderr) == ("", "store: http://***@h:1 (MLFLOW_TRACKING_URI)\n"), command
    for command in (("status",), ("predict", "a"), ("experts", "ls"), ("experts", "show", "a")):
        assert ttmoe(*command, "--json").output == ""


def test_predict_rejects_options_that_do_not_go_together() -> None:
    refused = ttmoe("predict", "a text", "--ray")
    assert (refused.exit_code, "--ray requires --file" in refused.stderr) == (2, True)
    assert ttmoe("predict", "a text", "--batch-size", "0").exit_code == 2
