"""Which MLflow store a command uses, its files with special names, and addresses without their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config.store_address import (
    find_store,
    mask_secrets,
    mask_uri,
    split_credentials,
    sqlite_file,
    sqlite_uri,
)


@pytest.mark.parametrize(
    ("named", "variable", "source"),
    [
        ({"uri": "http://u", "root": Path("r"), "config_uri": "http://c"}, "http://v", "--uri"),
        ({"root": Path("r"), "config_uri": "http://c"}, "http://v", "--root"),
        ({"config_uri": "http://c", "config_root": Path("r")}, "http://v", "tracking.uri"),
        ({"config_root": Path("r")}, "http://v", "MLFLOW_TRACKING_URI"),
        ({"config_root": Path("r")}, "", "storage.root"),
    ],
)
def test_the_command_line_comes_first_then_the_config_then_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, str | Path], variable: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    store = find_store(**named)
    servers = {"--uri": "http://u", "tracking.uri": "http://c", "MLFLOW_TRACKING_URI": "http://v"}
    assert (store.source, store.uri) == (source, servers.get(source, f"sqlite:///{tmp_path}/r/mlflow.db"))
    assert store.root == Path("r")
    assert store.artifacts == tmp_path / "r" / "mlartifacts"
    assert store.is_missing == (source not in servers)


@pytest.mark.parametrize("name", ["wt_feature%2Fx", "my%20project", "runs?a=b", "a b#c", "é@中:1", "100%"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    assert make_url(sqlite_uri(path)).database == str(path)  # what MLflow opens
    assert sqlite_file(sqlite_uri(path)) == path
    assert mask_secrets(sqlite_uri(path)) == mask_uri(sqlite_uri(path)) == sqlite_uri(path)


def test_a_uri_of_sqlite_is_read_as_sqlalchemy_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_file("sqlite:///my%20runs/x.db?timeout=3") == tmp_path / "my runs" / "x.db"
    assert sqlite_file("http://h/sqlite:///x.db") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:geheim@h:5000/a", "http://***@h:5000/a"),
        ("postgresql://ann:ge@he/im@h/db", "postgresql://***@h/db"),
        ("cannot reach 'https://geheim@h/x' for bob@h", "cannot reach 'https://***@h/x' for bob@h"),
        ("mysql://h/db?user=ann&password=geheim&ssl=1", "mysql://h/db?user=ann&password=***&ssl=1"),
        ("http://h:5000/?a=b", "http://h:5000/?a=b"),
        ("no 'http://u:ge h'e\"im@h/x'", "no 'http://***@h/x'"),
        ("'http://h:5000/a' and http://h:80 for bob@h", "'http://h:5000/a' and http://h:80 for bob@h"),
        ("at 'http://h/d?password=ge'heim' now", "at 'http://h/d?password=***' now"),
    ],
)
def test_a_password_is_not_shown(text: str, shown: str) -> None:
    assert mask_secrets(text) == shown


@pytest.mark.parametrize("password", ["p w", "p'w", 'a"b', "12 34", "p@/ w"])
def test_a_password_with_blanks_and_quotes_is_not_shown(password: str) -> None:
    assert mask_uri(f"postgresql://u:{password}@127.0.0.1:1/db") == "postgresql://***@127.0.0.1:1/db"
    assert password not in mask_uri(f"mysql://h/db?password={password}&ssl=1")


@pytest.mark.parametrize("uri", ["postgresql://u:12 3%27%25x@h/db", "mysql://h/db?user=u&password=12 3'%x"])
def test_no_text_shows_the_secrets_of_a_store_in_use(uri: str) -> None:
    find_store(uri=uri)
    assert mask_secrets(f"no answer from {uri} with (12 3'%x)") == f"no answer from {mask_uri(uri)} with (***)"


def test_a_short_password_of_a_store_in_use_is_hidden_beside_its_user() -> None:
    find_store(uri="postgresql://ann:p'w@h/db")
    assert mask_secrets("cannot parse ann:p'w@h: up'w") == "cannot parse ***@h: up'w"


def test_a_user_is_split_from_the_address_of_a_server() -> None:
    assert split_credentials("https://ann:ge%40heim@[::1]:5000/p?q=1") == ("https://[::1]:5000/p?q=1", "ann", "ge@heim")
    assert split_credentials("http://h:1") == ("http://h:1", "", "")


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("source", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_a_wrong_store_is_refused_by_its_name_before_anything_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    planned: list[object] = []
    for module in ("run.driver", "plan.planned_library"):
        monkeypatch.setattr(f"orchestrator.{module}.make_plan", planned.append)
    wrong = "ftp://ann:geheim@h"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong if source == "MLFLOW_TRACKING_URI" else "http://127.0.0.1:1")
    options = ["--set", f"tracking.uri={wrong}"] if source == "tracking.uri" else []
    result = CliRunner().invoke(app, [command, "quickstart", *options])
    assert (result.exit_code, planned) == (2, [])
    assert result.stderr.startswith(f"error: {source}\n  ftp://***@h is not an MLflow store\n")


def test_no_error_of_a_command_shows_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", "quickstart", "--set", "tracking.url=http://ann:geheim@h"])
    assert (result.exit_code, "http://***@h" in result.stderr, "geheim" in result.output) == (2, True, False)
