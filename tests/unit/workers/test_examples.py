import pytest

from ttmoe.errors import InputError
from workers.data.examples import Example, to_examples
from workers.data.task import Task


def task(kind="text", columns=None, label=None, **more):
    columns = columns or {"text": "text"}
    label = {"column": "label", **(label or {})}
    return Task.model_validate({"kind": kind, "source": {"path": "x.csv"}, "columns": columns, "label": label, **more})


def refused(rows, *args, **keywords):
    with pytest.raises(InputError) as caught:
        to_examples(rows, task(*args, **keywords), "t")
    return caught.value


def rows(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def test_texts_are_stripped_and_labels_sorted():
    found, names = to_examples(rows((" a \n", "10"), ("B", "9"), (7, "10")), task(), "t")
    assert names == ("9", "10")
    assert found == [Example(("a",), (), 1, ""), Example(("B",), (), 0, ""), Example(("7",), (), 1, "")]


def test_values_are_labels_in_their_spelling():
    assert to_examples(rows(("a", True), ("b", False)), task(), "t")[1] == ("false", "true")
    assert to_examples(rows(("a", "01"), ("b", "1")), task(), "t")[1] in (("01", "1"), ("1", "01"))
    assert to_examples(rows(("a", "x")), task(), "t", ("w", "x"))[0][0].label == 1


def test_keys_fold_case_and_white_space():
    key = Example(("A  b\n", "c"), (), 0, "").key
    assert key == Example(("a\tB", "C "), (), 1, "g").key
    assert key != Example(("a b c",), (), 0, "").key
    assert key != Example(("a", "b c"), (), 0, "").key
    assert Example(("q",), ("a", "b"), 0, "").key != Example(("q",), ("b", "a"), 0, "").key


def test_columns_may_be_dotted():
    nested = {"input": [{"content": "sys"}, {"content": "user"}], "a.b": "flat", "label": "x"}
    for path, text in [("input.1.content", "user"), ("input.-2.content", "sys"), ("a.b", "flat")]:
        assert to_examples([nested], task(columns={"text": path}), "t")[0][0].texts == (text,)


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("txt", "nearest: text; existing columns: text, input, label"),
        ("input.2.content", "a list of 2"),
        ("input.-3.content", "a list of 2"),
        ("input.0.contents", "nearest: content;"),
        ("text.deep", "which is a plain value"),
    ],
)
def test_an_unknown_column_names_near_ones(path, fix):
    row = {"text": "a", "input": [{"content": "sys"}, {"content": "user"}], "label": "x"}
    error = refused([row], columns={"text": path})
    assert error.where == "tasks.t.columns.text"
    assert f"row 1 has no column {path!r}" in error.what
    assert fix in error.fix


def test_every_column_has_its_own_key():
    row = {"text": "a", "label": "x", "listed": ["b"]}
    pair = {"first": "text", "second": "no"}
    assert refused([row], "pair", pair).where == "tasks.t.columns.second"
    assert refused([row], label={"column": "no"}).where == "tasks.t.label.column"
    assert refused([row], where=[{"column": "no", "in": [1]}]).where == "tasks.t.where.0.column"
    assert refused([row], split={"group": {"column": "no"}}).where == "tasks.t.split.group.column"
    assert refused([row], "choice", {"text": "text", "choices": "no"}).where == "tasks.t.columns.choices"
    nested = refused([row], columns={"text": "listed"})
    assert "nested" in nested.what
    assert "listed.0" in nested.fix


def test_names_map_raw_values():
    label = {"names": {2: "spam", "1.0": "ham", 3: "spam"}}
    found, names = to_examples(rows(("a", 3), ("b", "1.0"), ("c", 2.0)), task(label=label), "t")
    assert names == ("spam", "ham")
    assert [e.label for e in found] == [0, 1, 0]


def test_an_unknown_label_is_counted():
    error = refused(rows(("a", 1), ("b", 5), ("c", 6)), label={"names": {1: "x", 2: "y"}})
    assert error.what == "label '5' of row 2 is unknown; 2 rows (2, 3) have an unknown label"
    assert error.where == "tasks.t.label.names"
    assert "known: 1, 2;" in error.fix


def test_a_missing_label_is_named():
    error = refused(rows(("a", None), ("b", "x"), ("c", float("nan"))))
    assert error.what == "2 rows (1, 3) have no label"


def test_ranges_are_open():
    label = {"ranges": {"pos": [0.4, None], "neg": [None, -0.4]}}
    numbers = ["0.4", 0.41, "-0.4", "-3", 0]
    found, names = to_examples(rows(*((str(n), n) for n in numbers)), task(label=label), "t")
    assert names == ("pos", "neg")
    assert [(e.texts[0], e.label) for e in found] == [("0.41", 0), ("-3", 1)]
    error = refused(rows(("a", 1), ("b", "much")), label=label)
    assert "row 2 contains 'much', which is not a number" in error.what


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"in": [1, "b"]}, "ab"),
        ({"not_in": ["b", "1"]}, "cd"),
        ({"above": 1, "below": 2}, "d"),
        ({"matches": "^[1b]"}, "abd"),
    ],
)
def test_filters_keep_what_fits(asked, left):
    data = [{"text": t, "label": "x", "f": f} for t, f in [("a", 1.0), ("b", "b"), ("c", None), ("d", "1.5")]]
    data = [row for row in data if "above" not in asked or row["f"] != "b"]
    found, _ = to_examples(data, task(where=[{"column": "f", **asked}]), "t")
    assert "".join(e.texts[0] for e in found) == left


def test_a_filtered_row_may_be_anything():
    data = rows(("", "nonsense"), ("a", 1))
    found, _ = to_examples(data, task(where=[{"column": "text", "matches": r"\S"}], label={"names": {1: "x"}}), "t")
    assert len(found) == 1


def test_empty_texts_are_named():
    error = refused(rows((" ", "x"), ("a", "x"), *[(None, "y")] * 6))
    assert error.what == "7 rows (1, 3, 4, 5, 6, …) have an empty text"
    assert error.where == "tasks.t.columns.text"


def test_pairs_have_two_texts():
    data = [{"premise": "p", "hypothesis": "h", "label": 0}]
    found, _ = to_examples(data, task("pair", {"first": "premise", "second": "hypothesis"}), "t")
    assert found[0].texts == ("p", "h")


CHOICE = {"text": "q", "choices": "c"}


def test_choices_from_a_list_or_from_columns():
    data = [
        {"q": "?", "c": ["a", "b "], "x": "a", "y": "b", "label": "1"},
        {"q": "!", "c": ["a", "b", "d"], "x": "d", "y": "e", "label": 0},
    ]
    found, names = to_examples(data, task("choice", CHOICE), "t")
    assert found[0] == Example(("?",), ("a", "b"), 1, "")
    assert names == ("0", "1", "2")
    found, names = to_examples(data, task("choice", {"text": "q", "choices": ["x", "y"]}), "t")
    assert found[1] == Example(("!",), ("d", "e"), 0, "")
    assert names == ("0", "1")


def test_letters_name_options():
    data = [{"q": "?", "c": ["a", "b"], "label": "B"}]
    label = {"names": {"A": 0, "B": 1}}
    assert to_examples(data, task("choice", CHOICE, label), "t")[0][0].label == 1
    assert "label 'B' of row 1" in refused([{**data[0]}], "choice", CHOICE).what


@pytest.mark.parametrize("label", [2, -1, "x"])
def test_an_option_out_of_range_is_refused(label):
    good = {"q": "?", "c": ["a", "b"], "label": 1}
    error = refused([good, {**good, "label": label}], "choice", CHOICE)
    assert error.what == f"label '{label}' of row 2 is out of range: it has 2 options, counted from 0"
    assert error.where == "tasks.t.label.column"


def test_options_must_be_a_list_of_texts():
    assert "is not a list" in refused([{"q": "?", "c": "ab", "label": 0}], "choice", CHOICE).what
    error = refused([{"q": "?", "c": ["a", ""], "label": 0}], "choice", CHOICE)
    assert error.what == "row 1 has an empty option"


def test_groups_are_read_by_pattern():
    data = [{"text": "a", "label": "x", "id": "12_3"}]
    for pattern, group in [(r"^(\d+)_", "12"), (r"\d+$", "3"), (None, "12_3")]:
        found, _ = to_examples(data, task(split={"group": {"column": "id", "pattern": pattern}}), "t")
        assert found[0].group == group
    error = refused(data, split={"group": {"column": "id", "pattern": "z"}})
    assert "row 1 has no group: 'id' is '12_3'" in error.what
    assert error.where == "tasks.t.split.group"


def test_a_row_without_the_column_of_a_filter_is_one_with_an_empty_cell():
    data = [
        {"text": "a", "label": "x", "tags": [{"name": "new"}]},
        {"text": "b", "label": "y", "tags": []},
        {"label": "z"},
    ]
    filled = task(where=[{"column": "tags.0.name", "matches": r"\S"}])
    assert [example.texts for example in to_examples(data, filled, "t")[0]] == [("a",)]
    others = task(where=[{"column": "tags.0.name", "not_in": ["new"]}, {"column": "text", "matches": "."}])
    assert [example.texts for example in to_examples(data, others, "t")[0]] == [("b",)]
    error = refused(data, where=[{"column": "tag", "matches": "."}])
    assert (error.where, error.fix.startswith("nearest: tags")) == ("tasks.t.where.0.column", True)
