"""The registered router in MLflow: loaded as a pyfunc model, and served by ``mlflow models serve``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import environment
from predict_library import ROWS, answers_of, check_alike, register_library

pytestmark = pytest.mark.integration

COLUMNS = ["text", "second", "choices"]
URI = "models:/lib.router@champion"


@pytest.fixture(scope="module")
def root(base_folder, fresh_store, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    router = register_library(root, base_folder, tmp_path_factory.mktemp("made"), fresh_store)
    (root / "router").symlink_to(router)
    return root


@pytest.fixture(scope="module")
def answers(root, base_folder) -> list[Any]:
    return answers_of(root / "router", base_folder, ROWS)


def split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"columns": COLUMNS, "data": [[row.get(name) for name in COLUMNS] for row in rows]}


@pytest.fixture(scope="module")
def model(root):
    from orchestrator.registry import Registry  # before MLflow: it suppresses warnings of MLflow's import

    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    import mlflow

    assert registry.router("lib") is not None
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TTMOE_BASE", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets the variable, and the context restores it
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        yield mlflow.pyfunc.load_model(URI)
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def address(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder = Path(sys.executable).parent
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"  # the command starts uvicorn by name
    env = environment(MLFLOW_TRACKING_URI=f"sqlite:///{root}/mlflow.db", PATH=path, MLFLOW_DISABLE_TELEMETRY="true")
    command = [folder / "mlflow", "models", "serve", "-m", URI, "--env-manager", "local", "-p", str(port)]
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        up = tiny.wait_for(lambda: process.poll() is not None or alive(address), 90)
        assert up, (root / "server.log").read_text()
        assert process.poll() is None, (root / "server.log").read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    assert tiny.wait_for(lambda: not alive(address), 20)


class TestLoaded:
    def test_all_forms_in_one_frame(self, model, answers):
        import pandas as pd

        check_alike(model.predict(pd.DataFrame(ROWS)).to_dict("records"), answers)  # nan where a row has nothing
        check_alike(model.predict(ROWS).to_dict("records"), answers)
        given = pd.DataFrame(split(ROWS)["data"], columns=COLUMNS, index=range(10, 18))
        found = model.predict(given)
        check_alike(found.to_dict("records"), answers)
        assert found.index.tolist() == list(range(10, 18))
        texts = [row["text"] for row in ROWS if len(row) == 1]
        plain = [answer for row, answer in zip(ROWS, answers, strict=True) if len(row) == 1]
        for missing in (None, float("nan"), pd.NA):
            frame = pd.DataFrame({"text": texts, "second": missing, "choices": missing})
            check_alike(model.predict(frame).to_dict("records"), plain)

    def test_a_dict_of_columns_is_several_rows(self, model, answers):
        texts = [row["text"] for row in ROWS if len(row) == 1]
        plain = [answer for row, answer in zip(ROWS, answers, strict=True) if len(row) == 1]
        check_alike(model.predict({"text": texts}).to_dict("records"), plain)
        pairs = [(i, row) for i, row in enumerate(ROWS) if "second" in row]
        columns = {name: [row[name] for _, row in pairs] for name in ("text", "second")}
        check_alike(model.predict(columns).to_dict("records"), [answers[i] for i, _ in pairs])
        check_alike(
            model.predict({name: [row.get(name) for row in ROWS] for name in COLUMNS}).to_dict("records"), answers
        )

    def test_the_example_can_be_served(self, model, root):
        assert len(model.predict(model.input_example)) == 3
        served = json.loads((root / "router" / "serving_input_example.json").read_text())
        assert [sorted(row) for row in served["inputs"]] == [["text"], ["second", "text"], ["choices", "text"]]

    @pytest.mark.parametrize(
        ("rows", "what"),
        [
            ([{"text": "red"}, {"text": " "}], r"row 2: column 'text' is empty"),
            ([{"text": None}], r"row 1: column 'text' is empty"),
            ([{"text": "red", "choices": "cat"}], r"row 1: column 'choices' is not a list"),
            ([{"text": "red", "second": "cat", "choices": ["a", "b"]}], "a second text and options"),
            ([{"text": "red", "second": ["cat"]}], "column 'second' is nested, not a text"),
            ({"text": ["red", "cat"], "choices": ["a", "b", "c"]}, "2 texts"),
        ],
    )
    def test_a_bad_row_is_an_invalid_parameter(self, model, rows, what):
        import mlflow

        with pytest.raises(mlflow.exceptions.MlflowException, match=what) as caught:
            model.predict(rows)
        assert caught.value.get_http_status_code() == 400

    def test_model_config_names_the_folder_of_the_base(self, model, root, tmp_path):
        import mlflow

        from ttmoe.errors import InputError

        with pytest.raises(InputError, match="is not in folder"):
            mlflow.pyfunc.load_model(str(root / "router"), model_config={"base": str(tmp_path / "none")})


class TestServed:
    def test_all_forms_in_each_orientation(self, address, answers):
        for body in (
            {"dataframe_split": split(ROWS)},
            {"dataframe_records": ROWS},
            {"inputs": ROWS},
            {"inputs": [{name: row.get(name) for name in COLUMNS} for row in ROWS]},
            {"inputs": {name: [row.get(name) for row in ROWS] for name in COLUMNS}},
        ):
            status, response = post(address, body)
            assert status == 200, response
            check_alike(response["predictions"], answers)
        status, response = post(address, {"inputs": {"text": "red north1"}})
        check_alike(response["predictions"], answers[:1])

    def test_a_bad_request_has_status_400_and_a_message(self, address):
        for body, what in (
            ({"dataframe_records": [{"text": "red"}, {"text": ""}]}, "row 2: column 'text' is empty"),
            ({"inputs": [{"text": "red", "choices": "cat"}]}, "column 'choices' is not a list"),
            ({"dataframe_records": [{"question": "red"}]}, "Model is missing inputs ['text']"),
            ({"rows": []}, "exactly one of the input fields"),
        ):
            status, response = post(address, body)
            assert (status, what in response["message"]) == (400, True), response

    def test_many_clients_at_once(self, address, answers):
        def send(number: int) -> tuple[int, Any]:
            return post(address, {"inputs": ROWS[number % 8 :] + ROWS[: number % 8]})

        with ThreadPoolExecutor(8) as clients:
            for number, (status, response) in enumerate(clients.map(send, range(40))):
                assert status == 200, response
                check_alike(response["predictions"], answers[number % 8 :] + answers[: number % 8])


def alive(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/ping", timeout=5).close()
    except OSError:
        return False
    return True


def post(address: str, body: Any) -> tuple[int, Any]:
    """Return status and response."""
    data, head = json.dumps(body).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/invocations", data, head), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
