"""What SECURITY.md promises: read in the code where that shows it, and tried with hostile files where it does not.

Elsewhere: secrets in test_store_address.py, test_config.py, test_report.py, test_job_package.py, test_cloud.py and
integration/test_registry.py; digests and paths of wheels in test_wheels.py, of bases in test_base_sources.py, of
experts in test_expert_files.py; checkpoints in test_checkpoints.py; a router's lock in test_routed.py.
"""

from __future__ import annotations

import ast
import json
import shutil
import types
from pathlib import Path

import pytest
import tiny_chat
import yaml
from quickstart import ROOT

from orchestrator.config import yaml_document
from orchestrator.progress import mlflow_ui
from orchestrator.registry.version_files import download_path, fetched_path
from ttmoe.base import Base, digest_folder, empty_body, load_body, load_tokenizer
from ttmoe.chat_template import ChatTemplate
from ttmoe.errors import InputError
from workers.base.base_sources import resolve_base

SOURCES = sorted(
    path for name in ("ttmoe", "workers", "orchestrator", "cluster") for path in (ROOT / name).rglob("*.py")
)
# Each runs code that its input names: pickles, MLflow's loaders (which import the module that a model names), shells.
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
          "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "numpy.load", "np.load",
          "pandas.read_pickle", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load", "mlflow.pyfunc.load_model",
          "mlflow.pytorch.load_model", "mlflow.transformers.load_model", "eval", "exec", "compile", "os.system",
          "os.popen"}  # fmt: skip
HIDING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}  # write their whole names


def unsafe_calls(text: str) -> list[str]:
    """The calls in a program that could run code of what they read, and the lines in which they stand."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in HIDING:
            found.append(f"{node.lineno}: from {node.module} import")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        wrong = (
            name in UNSAFE
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "yaml.load" and ast.unparse(node.args[1]) != "_Loader")
            or (name.startswith("Auto") and ".from_" in name and given.get("trust_remote_code") != "False")
            or given.get("shell") == "True"
        )
        if wrong:
            found.append(f"{node.lineno}: {name}")
    return found


def test_no_module_calls_what_runs_the_code_of_its_input():
    found = {str(path.relative_to(ROOT)): calls for path in SOURCES if (calls := unsafe_calls(path.read_text()))}
    (on_end,) = found.pop("orchestrator/run/on_end.py")  # the command that a user gives for the end of a run
    assert on_end.endswith(" subprocess.Popen")
    assert not found
    assert issubclass(yaml_document._Loader, yaml.SafeLoader | getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(data)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t, yaml.Loader)",
     "AutoModel.from_pretrained(f)", "AutoModel.from_pretrained(f, trust_remote_code=True)",
     "run(c, shell=True)", "from pickle import loads"],
)  # fmt: skip
def test_such_a_call_would_be_found(line):
    assert unsafe_calls(line)


@pytest.fixture
def hostile(base_folder, tmp_path):
    """A base that brings code of its own, for its config, its model and its tokenizer; the code leaves a mark."""
    folder = tmp_path / "hostile"
    shutil.copytree(base_folder, folder, ignore=shutil.ignore_patterns("cache"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, entries in {
        "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.T"]}},
    }.items():
        values = json.loads((folder / name).read_text()) | entries
        (folder / name).write_text(json.dumps(values))
    return Base("folder", "own", "", digest_folder(folder), str(folder), "float32", 32, "mean")


def test_code_that_a_base_brings_is_not_run_and_nobody_is_asked(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # transformers would ask at a terminal
    for load in (load_body, empty_body):
        with pytest.raises(InputError, match="cannot read its config"):
            load(hostile)
    with pytest.raises(InputError, match=r"cannot load its tokenizer: .*(trust_remote_code|custom code)"):
        load_tokenizer(hostile)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("reach", ["''.__class__.__mro__[1].__subclasses__()", "cycler.__init__.__globals__.os"])
def test_a_chat_template_runs_in_a_sandbox(tmp_path, reach):
    folder = tiny_chat.save_chat_base(tmp_path, "{{ " + reach + " }}" + tiny_chat.MARKED)
    base = Base("folder", "own", "", digest_folder(folder), str(folder), "float32", 32, "last")
    with pytest.raises(InputError, match="refuses a conversation"):
        _ = ChatTemplate(load_tokenizer(base)).end_ids


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".."])
def test_names_from_a_registry_stay_in_its_folder(name, tmp_path):
    store = types.SimpleNamespace(uri="http://registry", artifact_root=tmp_path / "mlartifacts")
    with pytest.raises(InputError, match="is not a path inside the folder of downloads"):
        fetched_path(store, name)
    if name.startswith(("..", "/")):
        with pytest.raises(InputError, match="is not a path inside the folder of downloads"):
            download_path(store, f"{name}/lib.task", 1, "mlflow-artifacts:/1")
    assert fetched_path(store, "lib.task-1-abc").is_relative_to(tmp_path / "mlartifacts" / "fetched")


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../b"])
def test_a_config_cannot_name_a_base_outside_its_source(path, base_folder, tmp_path):
    with pytest.raises(InputError, match="is not a path inside a package"):
        resolve_base(package="numpy", path=path, cache=tmp_path)
    with pytest.raises(InputError, match="is not a path inside the base"):
        resolve_base(folder=str(base_folder), gguf=f"{path}.gguf", cache=tmp_path)


def test_servers_listen_on_this_machine_alone():
    command = mlflow_ui._command(Path("/tmp/artifacts"), 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    everywhere = [str(path) for path in SOURCES if '"0.0.0.0"' in path.read_text() or "'0.0.0.0'" in path.read_text()]
    assert not everywhere
    assert "include_dashboard=False" in (ROOT / "cluster" / "local.py").read_text()
    assert not [path for path in (ROOT / "cluster" / "templates").iterdir() if "0.0.0.0" in path.read_text()]


def test_the_password_of_a_store_is_no_argument_of_its_server():
    uri = "postgresql://me:s3cret-pass@db/mlflow"
    assert "s3cret-pass" not in " ".join(mlflow_ui._command(Path("/tmp/artifacts"), 5000))
    assert mlflow_ui._place(uri)["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
