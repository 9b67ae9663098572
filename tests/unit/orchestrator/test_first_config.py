"""``ttmoe init DATA...``: what is guessed of files, what is said of them, and the config that is written."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import own_files
import pytest
import tiny
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.config.loading import load_config
from orchestrator.config.schema import Config, TaskEntry
from orchestrator.first_config.data_file import read_data_file
from orchestrator.first_config.new_config import draft_config
from orchestrator.first_config.split_groups import group_files
from orchestrator.first_config.token_lengths import RowLengths, needed_length
from ttmoe.errors import InputError
from workers.data.prepared import prepare_task

WORDS = ("the", "kettle", "lamp", "chair", "phone", "bag", "clock", "heater", "mixer", "is", "was", "great", "broken",
         "noisy", "and", "of", "in", "my", "new", "old")  # fmt: skip


def text(number: int, words: int = 8) -> str:
    """A text that no other number has."""
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(words)) + f" {number}"


def rows(count: int = 60, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose cells are what the functions return for their number; a list is repeated."""
    return [{name: make(i) if callable(make) else make[i % len(make)] for name, make in columns.items()}
            for i in range(count)]  # fmt: skip


def init(folder: Path, *files: Path, config: str = "mine.yaml") -> Result:
    return CliRunner().invoke(app, ["init", *map(str, files), "--out", str(folder / config)])


def guessed(folder: Path, data: Iterable[dict[str, Any]], name: str = "data.jsonl") -> tuple[TaskEntry, str]:
    """The task that is written for rows, after its data was prepared from it, and what the command printed."""
    result = init(folder, tiny.write_rows(folder / name, data))
    assert result.exit_code == 0, result.output
    config = load_config(str(folder / "mine.yaml")).config
    [(task_name, task)] = config.tasks.items()
    prepare_task(task_name, task, folder / "cache")
    return task, result.output


def columns(task: TaskEntry) -> dict[str, Any]:
    label = {"label": task.label.column} if task.label else {}
    return {"kind": task.kind, **task.columns.model_dump(), **label}  # type: ignore[union-attr]


def turns(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": text(number)}, {"role": "assistant", "content": text(number + 100)}]


AB, YES = ["a", "b"], ["yes", "no"]
OPTIONS = [["one", "two", "three", "four"]]
CASES = {
    "named": (dict(text=text, label=AB), dict(kind="text", text="text", label="label")),
    "other names": (dict(ReviewBody=text, Ticket_Category=AB),
                    dict(kind="text", text="ReviewBody", label="Ticket_Category")),
    "by content": (dict(x=text, y2=["red", "green"], z=lambda i: i), dict(kind="text", text="x", label="y2")),
    "no identifiers": (
        dict(id=lambda i: i, date=lambda i: f"2024-01-{i % 28 + 1:02}", lang=["en"], tweet=text, sentiment=[0, 1, 2]),
        dict(kind="text", text="tweet", label="sentiment"),
    ),
    "names beside numbers": (dict(text=text, label=[0, 1], label_text=["bad", "good"]),
                             dict(kind="text", text="text", label="label_text")),
    "booleans": (dict(comment=text, is_spam=[True, False]), dict(kind="text", text="comment", label="is_spam")),
    "the label of a pair": (dict(sentence1=text, sentence2=lambda i: text(i + 9), score=[0, 1]),
                            dict(kind="pair", first="sentence1", second="sentence2", label="score")),
    "premise": (dict(premise=text, hypothesis=text, gold_label=["e", "n"]),
                dict(kind="pair", first="premise", second="hypothesis", label="gold_label")),
    "boolq": (dict(question=text, passage=lambda i: text(i, 40), answer=YES),
              dict(kind="text", text="question", label="answer")),
    "list of options": (dict(question=text, choices=OPTIONS, answer=[0, 1, 2, 3]),
                        dict(kind="choice", text="question", choices="choices", label="answer")),
    "arc": (dict(question=text, choices=[{"text": OPTIONS[0], "label": list("ABCD")}], answerKey=list("ABCD")),
            dict(kind="choice", text="question", choices="choices.text", label="answerKey")),
    "columns of options": (dict(premise=text, choice1=lambda i: text(i + 5), choice2=lambda i: text(i + 7), label=[0, 1]),  # noqa: E501
                           dict(kind="choice", text="premise", choices=("choice1", "choice2"), label="label")),
    "copa": (dict(premise=text, question=["cause", "effect"], choice1=["x"], choice2=["y"], label=[0, 1]),
             dict(kind="choice", text="premise", choices=("choice1", "choice2"), label="label")),
    "winogrande": (dict(sentence=text, option1=["he"], option2=["she"], answer=["1", "2"]),
                   dict(kind="choice", text="sentence", choices=("option1", "option2"), label="answer")),
    "tweets of airlines": (
        dict(tweet_id=lambda i: i * 10**9, airline_sentiment=["good", "bad"], airline_sentiment_confidence=[1.0, 0.65],
             airline=["X", "Y", "Z"], name=lambda i: f"user{i}", text=text, created=["2015-02-24 11:35:52"]),
        dict(kind="text", text="text", label="airline_sentiment"),
    ),
    "preferences": (dict(prompt=text, chosen=lambda i: text(i + 5), rejected=lambda i: text(i + 9)),
                    dict(kind="generate", prompt="prompt", answer="chosen")),
    "spam of Kaggle": (dict(v1=["ham", "spam"], v2=text), dict(kind="text", text="v2", label="v1")),
    "letters": (dict(question=text, a=["v", "w"], b=["x"], c=["y"], d=["z"], answer=list("ABCD")),
                dict(kind="choice", text="question", choices=("a", "b", "c", "d"), label="answer")),
    "prompt": (dict(prompt=text, completion=lambda i: text(i, 20)),
               dict(kind="generate", prompt="prompt", answer="completion")),
    "alpaca": (dict(instruction=text, input=["", "more"], output=lambda i: text(i, 20)),
               dict(kind="generate", prompt="instruction", answer="output")),
    "dolly": (dict(instruction=text, response=lambda i: text(i, 20), category=AB),
              dict(kind="generate", prompt="instruction", answer="response")),
    "question and answer": (dict(question=text, answer=lambda i: text(i, 20)),
                            dict(kind="generate", prompt="question", answer="answer")),
    "answers that are labels": (dict(question=text, answer=YES), dict(kind="text", text="question", label="answer")),
    "chat": (dict(messages=turns), dict(kind="chat", messages="messages")),
    "sharegpt": (
        dict(id=text, conversations=lambda i: [{"from": "human", "value": text(i)}, {"from": "gpt", "value": "ok"}]),
        dict(kind="chat", messages="conversations"),
    ),
    "doccano": (dict(id=lambda i: i, text=text, label=[["pos"], ["neg"]]),
                dict(kind="text", text="text", label="label.0")),
    "label studio's JSON-MIN": (
        dict(text=text, id=lambda i: i, sentiment=["Positive", "Negative"], annotator=[1], annotation_id=lambda i: i,
             created_at=["2024-05-02T08:11:27.104Z"], lead_time=lambda i: i / 7),
        dict(kind="text", text="text", label="sentiment"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_kind_and_columns_are_guessed(tmp_path: Path, name: str) -> None:
    made, expected = CASES[name]
    task, _ = guessed(tmp_path, rows(**made))
    assert columns(task) == expected


def test_letters_and_counts_from_one_are_mapped_to_indexes(tmp_path: Path) -> None:
    task, _ = guessed(tmp_path, rows(question=text, choices=OPTIONS, answer=list("ABCD")))
    assert task.label
    assert task.label.names == {"A": "0", "B": "1", "C": "2", "D": "3"}
    task, printed = guessed_again(tmp_path, rows(question=text, choices=OPTIONS, answer=[1, 2, 3, 4]))
    assert task.label
    assert task.label.names == {"1": "0", "2": "1", "3": "2", "4": "3"}
    assert "unclear: label: answer is taken for the number of the right option, where 1 is the first" in printed


def guessed_again(folder: Path, data: Iterable[dict[str, Any]]) -> tuple[TaskEntry, str]:
    (folder / "mine.yaml").unlink(missing_ok=True)
    return guessed(folder, data)


def test_other_columns_that_could_have_been_meant_are_named_with_the_reason(tmp_path: Path) -> None:
    made = rows(title=lambda i: text(i, 5), body=lambda i: text(i, 12), topic=AB, priority=["low", "mid", "high"])
    task, printed = guessed(tmp_path, made)
    assert columns(task) == dict(kind="text", text="body", label="topic")
    written = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    for said in (
        "label: priority (3 values) could have been meant too; topic was chosen because it has the name of a label",
        "could have been meant too; body was chosen because it has the name of a text; kind pair reads two",
    ):
        assert f"unclear: {said}" in printed or said in " ".join(printed.split())
        assert said in written
    assert "UNCLEAR: label: priority" in written


def test_a_choice_by_content_alone_is_unclear(tmp_path: Path) -> None:
    _, printed = guessed(tmp_path, rows(v1=["ham", "spam"], v2=text))
    assert "unclear: label: no column has the name of a label; v1 was chosen because it has few values" in printed
    assert (
        "unclear: text: no column has the name of a text; v2 was chosen because its values are the longest" in printed
    )


def test_rows_without_text_or_label_are_left_out_by_a_filter(tmp_path: Path) -> None:
    made = rows(text=lambda i: "" if i == 3 else text(i), label=AB)
    made[5]["label"] = None
    del made[8]["label"]
    task, printed = guessed(tmp_path, made)
    assert [each.column for each in task.where] == ["text", "label"]
    assert "60 rows, without 3 filtered" in printed
    assert "2 of 60 rows have no label, and are left out (`where`)." in printed


def test_labels_that_differ_in_capitals_become_one(tmp_path: Path) -> None:
    task, printed = guessed(tmp_path, rows(text=text, label=["Spam", "ham", "spam", "spam"]))
    assert task.label
    assert task.label.names == {"Spam": "spam", "spam": "spam", "ham": "ham"}
    assert "Spam, spam differ in capitals alone" in printed
    assert "2 classes: spam 45, ham 15" in printed


def test_several_labels_of_a_row_are_told(tmp_path: Path) -> None:
    made = rows(text=text, label=[["a"], ["b"]])
    made[0]["label"], made[1]["label"] = ["a", "b"], []
    task, printed = guessed(tmp_path, made)
    assert columns(task)["label"] == "label.0"
    assert "In 1 of 60 rows label has several items, of which the first is read." in printed
    assert "1 of 60 rows have no label.0" in printed


def test_conversations_without_an_answer_are_left_out(tmp_path: Path) -> None:
    made = rows(messages=turns)
    made[7]["messages"] = made[7]["messages"][:1]
    task, printed = guessed(tmp_path, made)
    assert task.where[0].column == "messages.-1.role"
    assert "1 of 60 conversations do not end with an answer, and are left out" in printed
    made[9]["messages"][1]["content"] = " "
    with pytest.raises(InputError, match="row 10: message 2 is empty"):
        draft_config([tiny.write_rows(tmp_path / "empty.jsonl", made)], tmp_path, "x")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (rows(2, text=text, label=AB), "warning: no rows are left for validation and test"),
        (rows(10, text=text, label=AB), "warning: 10 different rows are few"),
        (rows(text=text, label=["a"]), "warning: all rows have the label a: `ttmoe run` will refuse the task"),
        ([*rows(text=text, label=AB), {"text": "z z", "label": "c"}], "warning: 1 of 3 classes have one row (c)"),
        ([*rows(text=text, label=AB), *rows(9, text=text, label=AB)], "69 rows, without 9 repeated;"),
        (
            [*rows(text=text, label=AB), *rows(1, text=text, label=["b"])],
            "without 2 with the text of a row with another",
        ),
    ],
)
def test_what_makes_results_doubtful_is_said(tmp_path: Path, made: list[dict[str, Any]], said: str) -> None:
    result = init(tmp_path, tiny.write_rows(tmp_path / "data.jsonl", made))
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert load_config(str(tmp_path / "mine.yaml")).config.tasks


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (rows(text=text), "there is no label and no answer to learn: text is a text"),
        (rows(one=text, two=lambda i: text(i + 7)), "there is no label and no answer to learn"),
        (rows(text=text, score=lambda i: i / 7), "ranges: {low: [null, 0.5], high: [0.5, null]}"),
        (rows(a=[1, 2], b=[3]), "no column could be a text"),
        (rows(text=text, split=["train", "test"]), "there is no label and no answer"),
        (rows(text=text, label=[[[0, 3, "PER"]], [[2, 5, "LOC"]]]), "there is no label and no answer"),
    ],
)
def test_nothing_to_learn_is_refused_with_what_was_seen(tmp_path: Path, made: list[dict[str, Any]], said: str) -> None:
    result = init(tmp_path, tiny.write_rows(tmp_path / "data.jsonl", made))
    assert (result.exit_code, (tmp_path / "mine.yaml").exists()) == (2, False)
    assert said in result.output
    assert next(iter(made[0])) in result.output.partition("columns:")[2]


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("a.csv", "text,label\nx y,1\n", {}),
        ("a.csv", "text;label\r\nx, y;1\r\n", {"delimiter": ";"}),
        ("a.csv", "text\tlabel\nx; y\t1\n", {"delimiter": "\t"}),
        ("a.csv", 'text|label\n"x|y"|1\n', {"delimiter": "|"}),
        ("a.csv", "text;label\nüber;1\n".encode("cp1252"), {"encoding": "cp1252", "delimiter": ";"}),
        ("a.csv", "text,label\nüber,1\n".encode("utf-16"), {}),
        ("a.csv", 'text,label\n"x" y,1\n', {"quotes": False}),
        ("a.tsv", "text\tlabel\nx\t1\n", {}),
        ("a.tsv", 'text\tlabel\n"x\ny"\t1\n', {"quotes": True}),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x", "label": 1}\n', mtime=0), {}),
        ("a.json", '[\n {"text": "x", "label": 1}\n]\n', {}),
        ("a.txt", '{"text": "x", "label": 1}\n', {"format": "jsonl"}),
        ("a.txt", "text\tlabel\nx\t1\ny\t2\n", {"format": "tsv"}),
        ("a.txt", "text;label\nx;1\ny;2\n", {"format": "csv", "delimiter": ";"}),
        ("a.txt", "ham\tx y\nspam\ty z\n" * 3, {"pattern": r"^(?P<label>[^\t]{1,40})\t(?P<text>[^\t]+)$"}),
        ("a.txt", "x y\t0\ny z\t1\n" * 3, {"pattern": r"^(?P<text>[^\t]+)\t(?P<label>[^\t]{1,40})$"}),
        ("a.train", "__label__a x y\n__label__b y\n", {"pattern": r"^__label__(?P<label>\S+)\s+(?P<text>\S.*)$"}),
    ],
)  # fmt: skip
def test_the_format_of_a_file_is_found(
    tmp_path: Path, name: str, content: str | bytes, settings: dict[str, Any]
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    file = read_data_file(path)
    assert file.settings == settings
    assert {"text", "label"} == file.rows[0].keys()


@pytest.mark.parametrize(
    "line",
    [
        "2024-05-02 08:11:27,104 ERROR shop.orders: cannot pay",
        "ERROR:root:cannot pay",
        "[2024-05-02T08:11:27Z] [ERROR] cannot pay",
        "May  2 08:11:27 host shop[91]: ERROR cannot pay",
        "E0502 | ERROR | cannot pay",
    ],
)
def test_lines_of_logs_are_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.log").write_text(f"{line}\n  File x.py, line 3\n{line.replace('ERROR', 'INFO')}\n")
    read = read_data_file(tmp_path / "a.log").rows
    assert [row["level"] for row in read] == ["ERROR", "INFO"]
    assert read[0]["text"].endswith("cannot pay")
    assert "ERROR" not in read[0]["text"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.log", "x y z\nz y\n", "pattern: '^\\S+ (?P<level>[A-Z]+) (?P<text>.+)$'"),
        ("a.xlsx", "PK", "save the sheet as CSV"),
        ("a.csv", "", "the file has no rows"),
        ("a.csv", "3,Wall St. Bears,Short-sellers\n2,x,y\n", "the first line is taken for the names of the columns"),
        ("a.bin", "\0\0", "this is not a text file"),
        ("no.csv", None, "the file does not exist"),
        ("a.json", '{"data": [\n1]}\n', "this is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    result = init(tmp_path, tmp_path / name)
    assert (result.exit_code, (tmp_path / "mine.yaml").exists()) == (2, False)
    assert said in result.output
    assert name in result.output


def test_files_of_splits_are_one_task(tmp_path: Path) -> None:
    files = [
        tiny.write_rows(tmp_path / f"{name}.jsonl", rows(40, text=lambda i, n=n: text(i + 40 * n), label=AB))
        for n, name in enumerate(("reviews_train", "reviews_test", "reviews-dev", "other"))
    ]
    alone = group_files([files[0], files[2]])
    assert [(group.name, list(group.files)) for group in alone] == [("reviews_train", [""]), ("reviews-dev", [""])]
    result = init(tmp_path, *files)
    assert result.exit_code == 0, result.output
    config = load_config(str(tmp_path / "mine.yaml")).config
    source = config.tasks["reviews"].source.model_dump()  # type: ignore[union-attr]
    assert {split: Path(source[split]["path"]).name for split in source} == {
        "train": "reviews_train.jsonl", "validation": "reviews-dev.jsonl", "test": "reviews_test.jsonl"
    }  # fmt: skip
    assert "120 rows; 2 classes: a 60, b 60" in result.output
    assert list(config.tasks) == ["reviews", "other"]


def test_names_of_tasks_are_valid_and_differ(tmp_path: Path) -> None:
    names = ("My Data (2).csv", "my_data_2.csv", "router.csv", "äöü.csv", "x" * 90 + ".csv", "test.csv", "a.jsonl.gz")
    groups = group_files([tmp_path / name for name in names])
    assert [group.name for group in groups] == [
        "my_data_2", "my_data_2_2", "router_task", "task", "x" * 55, "test", "a"
    ]  # fmt: skip


def test_max_length_is_a_multiple_of_16_that_the_base_can_read() -> None:
    assert [needed_length(RowLengths(3, most, 990)) for most in (10, 16, 17, 900)] == [16, 16, 32, 912]
    assert needed_length(RowLengths(3, 10, 990, longest_answer=300)) == 368
    assert RowLengths.of(range(1, 101)) == RowLengths(50, 96, 100, False)


def test_tokens_are_counted_by_the_tokenizer_of_the_base_or_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny.write_rows(tmp_path / "data.jsonl", rows(text=lambda i: f"{text(i)} " * 5, label=AB))
    counted = draft_config([file], tmp_path, "x")
    monkeypatch.setattr("importlib.metadata.distribution", _not_installed)
    estimated = draft_config([file], tmp_path, "x")
    assert (counted.lengths[0].estimated, estimated.lengths[0].estimated) == (False, True)
    assert counted.lengths[0].median <= estimated.lengths[0].median < 3 * counted.lengths[0].median
    assert "by the base's tokenizer" in counted.text
    assert "estimated from the number of bytes" in estimated.text


def _not_installed(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_rows_that_the_base_cannot_read_whole_are_warned_of(tmp_path: Path) -> None:
    made = rows(text=lambda i: text(i, 700), label=AB)
    task, printed = guessed(tmp_path, made)
    assert task.kind == "text"
    assert "the base reads up to 512 tokens: more than one of twenty rows is longer, and is cut" in printed
    assert load_config(str(tmp_path / "mine.yaml")).config.base.max_length == 512
    assert "at most one of twenty" not in (tmp_path / "mine.yaml").read_text()


def test_rejected_rows_of_prodigy_are_left_out(tmp_path: Path) -> None:
    task, printed = guessed(tmp_path, rows(text=text, label=AB, answer=["accept", "accept", "reject"]))
    assert columns(task) == dict(kind="text", text="text", label="label")
    assert "20 of 60 rows have another answer than accept, and are left out" in printed


def test_several_flags_are_named_as_labels_that_could_have_been_meant(tmp_path: Path) -> None:
    _, printed = guessed(tmp_path, rows(comment=text, toxic=[0, 1], obscene=[0, 0, 1], threat=[1, 0, 0, 0]))
    assert (
        "unclear: label: obscene (2 values), threat (2 values) could have been meant too; toxic was chosen" in printed
    )


def test_a_library_that_writes_text_gets_a_causal_base(tmp_path: Path) -> None:
    files = [
        tiny.write_rows(tmp_path / "chats.jsonl", rows(messages=turns)),
        tiny.write_rows(tmp_path / "reviews.jsonl", rows(text=text, label=AB)),
    ]
    result = init(tmp_path, *files)
    assert "a small causal model: a task writes text and conversations" in result.output
    config, smol = load_config(str(tmp_path / "mine.yaml")).config, load_config("smollm2").config
    own = {"max_length"}
    assert config.base.model_dump(exclude=own) == smol.base.model_dump(exclude=own)
    assert config.base.max_length % 16 == 0
    assert "(estimated)" in result.output


def test_paths_are_relative_to_the_config_and_the_library_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    file = tiny.write_rows(tmp_path / "data" / "reviews.jsonl", rows(text=text, label=AB))
    assert init(tmp_path, file, config="configs/my shop.yaml").exit_code == 0
    path = tmp_path / "configs" / "my shop.yaml"
    assert "path: ../data/reviews.jsonl" in path.read_text()
    assert (tmp_path / "configs" / "ttmoe.schema.json").is_file()
    config = load_config(str(path)).config
    assert config.library == "my-shop"
    assert Path(config.tasks["reviews"].source.path).resolve() == file  # type: ignore[union-attr, arg-type]


def test_data_files_and_the_config_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "a.jsonl", rows(text=text, label=AB))
    run = lambda *arguments: CliRunner().invoke(app, ["init", *arguments])  # noqa: E731
    assert run("a.jsonl").exit_code == 0
    assert Path("ttmoe.yaml").is_file()
    refused = run("a.jsonl")
    assert (refused.exit_code, "--force" in refused.output) == (2, True)
    assert run("a.jsonl", "ttmoe.schema.json", "b.yaml").exit_code == 0  # as *.json finds it
    assert list(load_config("b.yaml").config.tasks) == ["a"]
    assert run("no_ending").exit_code == 0
    assert "my_task" in Path("no_ending").read_text()
    two = run("a.jsonl", "c.yaml", "--out", "d.yaml")
    assert (two.exit_code, "there are 2 configs to write" in two.output) == (2, True)


def test_what_a_file_contains_stays_in_comments_and_values(tmp_path: Path) -> None:
    """Names and labels may hold any characters: none ends a comment, or is read as YAML."""
    name = "text: \n- {x"
    task, _ = guessed(tmp_path, rows(**{name: text, "label #1": ["yes", "no\n  evil: 1", "null", "# c"]}))
    assert columns(task) == {"kind": "text", "text": name, "label": "label #1"}


def test_the_files_of_five_tools_are_read_without_an_edit(tmp_path: Path) -> None:
    files = own_files.write_own_files(tmp_path)
    result = init(tmp_path, *files)
    assert result.exit_code == 0, result.output
    config: Config = load_config(str(tmp_path / "mine.yaml")).config
    label_studio = "annotations.0.result.0.value.choices.0"
    assert [columns(task) for task in config.tasks.values()] == [
        dict(kind="text", text="Kommentar", label="Kategorie"),
        dict(kind="text", text="headline", label="target"),
        dict(kind="pair", first="premise", second="hypothesis", label="label"),
        dict(kind="text", text="text", label="level"),
        dict(kind="text", text="data.text", label=label_studio),
    ]
    read = {name: prepare_task(name, task, tmp_path / "cache") for name, task in config.tasks.items()}
    assert [len(data.label_names) for data in read.values()] == [3, 2, 3, 3, 2]
    assert [data.removed for data in read.values()] == [
        {"filtered": 2}, {}, {"filtered": 1}, {}, {"filtered": 5}
    ]  # fmt: skip
    assert re.search(r"91 of 9\d lines are lines of a log, with a level and a text; the other lines", result.output)


def test_looking_at_files_imports_no_torch(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "a.jsonl", rows(text=text, label=AB))
    code = (
        "import sys\nfrom orchestrator.cli import app\ntry: app(['init', 'a.jsonl'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "ttmoe.yaml").is_file(), done.stderr
    assert not {"torch", "ray", "mlflow", "transformers", "numpy", "pandas"} & set(done.stderr.split())
    assert json.loads((tmp_path / "ttmoe.schema.json").read_text())


@pytest.mark.parametrize("other", ["score", "rating", "stars"])
def test_what_a_label_tool_asked_comes_before_what_came_with_the_row(tmp_path: Path, other: str) -> None:
    draw = random.Random(0)
    made = [
        {"id": i, "data": {"text": f"a sentence about number {i}", "meta": {other: draw.choice([1, 2, 3, i])}},
         "annotations": [{"result": [{"value": {"choices": [draw.choice(["bug", "praise"])]}}]}]}
        for i in range(120)
    ]  # fmt: skip
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps(made))
    assert draft_config([path], tmp_path, "lib").drafts[0].guess.label == "annotations.0.result.0.value.choices.0"


def test_a_quantity_of_many_values_is_no_label(tmp_path: Path) -> None:
    draw = random.Random(0)
    made = [{"body": f"text {i} of some words", "score": draw.randrange(99), "team": draw.choice("ab")}
            for i in range(300)]  # fmt: skip
    path = tiny.write_rows(tmp_path / "a.jsonl", made)
    assert draft_config([path], tmp_path, "lib").drafts[0].guess.label == "team"


def test_a_folder_at_the_end_receives_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_texts(tmp_path / "colours.jsonl", tiny.COLOURS, "north", 60)
    (tmp_path / "there").mkdir()
    for place in ("there", "new/"):
        done = CliRunner().invoke(app, ["init", "colours.jsonl", place])
        assert done.exit_code == 0, done.output
        assert "colours.jsonl" in (tmp_path / place / "ttmoe.yaml").read_text()


@pytest.mark.parametrize(
    ("cell", "quoted"), [('"a ""b""\tand\nmore"', True), ('say "b" here', False), ("plain", False)]
)
def test_quotes_of_a_tsv_are_found(tmp_path: Path, cell: str, quoted: bool) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join(f"row {i}\tgood\n{cell}\tbad\n" for i in range(40)))
    file = read_data_file(path)
    assert file.settings.get("quotes", False) == quoted
    assert (len(file.rows), {row["label"] for row in file.rows}) == (80, {"good", "bad"})
