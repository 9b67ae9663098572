"""The report of a search: one page that stands alone, at one trial and at a thousand, and what it says of them."""

import json
import math
import random
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from orchestrator.recording.descriptions import describe_search
from orchestrator.registry.artifacts import PARETO_PLOT, SEARCH_REPORT, TRIALS
from orchestrator.report.figures import to_svg
from orchestrator.report.parallel_axes import draw_choices
from orchestrator.report.search_charts import draw_finalists, draw_hypervolume, draw_importances, draw_trials
from orchestrator.report.search_content import (
    RungRow,
    all_trials,
    choice_names,
    config_text,
    error_rows,
    reason_text,
    rung_rows,
    thin,
)
from orchestrator.report.search_page import SearchHeader, write_search_report
from orchestrator.report.search_tables import read_search_records
from orchestrator.search.importances import LEAST_TRIALS, choice_importances
from orchestrator.search.pareto import hypervolume, hypervolumes
from orchestrator.search.search_record import make_task_record
from orchestrator.search.trial import RungResult, Trial
from orchestrator.search.tuning import _log

EVIL = "<script>alert(1)</script>\"'&"
REFERENCES = [{"name": f"LoRA-{rank}", "parameters": 24576 * rank, "accuracy": 0.9} for rank in (1, 4, 16)]


def trial(number, rank=2, accuracies=(0.5, 0.8), state="finished", seed=0, error="", **point):
    rungs = [RungResult(10 * 3**i, value, 1 - value, 2.0 * 3**i) for i, value in enumerate(accuracies)]
    point = {"rank": rank, "factors": "2+3", **point}
    described = {"rank": str(rank), "factors": point["factors"]}
    origin = "confirming" if seed else "sampled"
    return Trial("trec", number, point, f"{point} {seed} {number}", 1000 * rank + number % 7, origin, seed,
                 description=described, state=state, rungs=rungs, error=error)  # fmt: skip


def searched(count):
    """A scripted search: learning rate and rank decide, a choice applies to some, some fail, one in three ends."""
    draw = random.Random(count)
    found = []
    for number in range(1, count + 1):
        lr, rank, targets = draw.choice([0.01, 0.03]), draw.choice([1, 2, 4, 8]), draw.choice(["q, v", "q, v, o"])
        more = {"lr": lr, "targets": targets, "alpha": number} | (
            {"factors.o": draw.choice(["2x2", "4"])} if "o" in targets else {}
        )
        top = 0.8 + 0.01 * rank - (0.1 if lr == 0.03 else 0) + draw.gauss(0, 0.005)
        if number % 10 == 0:
            found.append(trial(number, rank, (), "failed", error="DivergedError: the loss is nan\ntrace", **more))
        else:
            state, rungs = ("finished", 2) if number % 3 == 0 else ("stopped", 1)
            found.append(trial(number, rank, [top - 0.1, top][-rungs:], state, **more))
    best = max((each for each in found if each.state == "finished"), key=lambda each: each.accuracy, default=None)
    for seed in (1, 2) if best else ():
        again = trial(len(found) + 1, accuracies=(best.accuracy - 0.002 * seed,), seed=seed)
        again.point, again.parameters, again.description = best.point, best.parameters, best.description
        found.append(again)
    return found


def record(trials, **more):
    space = {"targets": ("q, v", "q, v, o"), "rank": (1, 2, 4, 8), "factors": ("2+3",)}
    made = make_task_record(
        "trec", trials, 0.005, None, space, 393216, lambda point: {"adapter": {"rank": point["rank"]}}
    )
    return json.loads(json.dumps(vars(made))) | more


HEADER = SearchHeader("lib", "a/base", "0.1", datetime(2026, 5, 4, tzinfo=UTC), 754.0, "uri: https://me:secret@host\n")


@pytest.fixture
def page(tmp_path):
    def write(*records, shared=None):
        write_search_report(tmp_path / "new" / "search.html", HEADER, records, shared)
        return (tmp_path / "new" / "search.html").read_text()

    return write


def test_the_page_says_what_is_recommended_and_why_and_stands_alone(page):
    text = page(record(searched(30), references=REFERENCES))
    for part in (
        "lib: search on trec", "a/base", "13 minutes", "over 3 seeds", "of LoRA-16", "trained with 3 seeds",
        "  trec:\n    adapter:\n      rank:", "LoRA-4", "Importance of the choices",
        "factors.o", "Hypervolume for trec",
        "DivergedError: the loss is nan</summary>", "10, 20, 30", "The 32 trials by accuracy",
        "finished, confirming, seed",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("<svg") == 5
    assert text.count('class="recommended"') == 3
    assert not re.search(r"<script|<link|<img|https?:|url\((?!#)|@import", text.replace("https://***@host", ""))
    assert "secret" not in text


def test_a_thousand_trials_make_a_small_page_that_says_what_it_leaves_out(page, monkeypatch):
    drawn = []
    draw = lambda trials, *more: drawn.append(len(trials)) or draw_trials(trials, *more)  # noqa: E731
    monkeypatch.setattr("orchestrator.report.search_page.draw_trials", draw)
    text = page(record(searched(1500)))
    assert drawn == [1000]
    assert len(text.encode()) < 2_000_000
    assert text.count("<tr><td>") + text.count('<tr class="recommended"') < 1100
    assert "The 1,000 most accurate of 1,502 trials" in text
    assert "352 trials are not drawn; all of the front are." in text
    assert "of which 300 are drawn" in text


def test_many_tasks_have_a_table_and_only_the_first_are_shown_in_full(page, monkeypatch):
    monkeypatch.setattr("orchestrator.report.search_page.MAX_WHOLE_TASKS", 2)
    few = record([trial(1, 2), trial(2, 8, (0.5, 0.9))])
    names = [f"task {i}" for i in range(4)]
    shared = {"point": {"rank": 2, "factors": "2+3"}, "parameters": 2002, "mean_position": 1.25,
              "positions": dict.fromkeys(names, 2), "accuracies": dict.fromkeys(names, 0.812)}  # fmt: skip
    text = page(*({**few, "task": name} for name in names), shared=shared)
    assert "One point for all tasks: <b>rank 2; factors 2+3</b>, with 2,002 parameters on task 0." in text
    assert text.count("<td>0.812, place 2</tr>") == 4
    assert "search on 4 tasks" in text
    assert text.count('<a href="#task-') == 4
    assert (text.count("Trials of task"), text.count("Choices of task")) == (4, 2)
    assert "The first 2 tasks are shown in full" in text


def test_all_text_is_escaped(page):
    found = [trial(1, targets=EVIL), trial(2, state="failed", error=EVIL), trial(3, targets="q", accuracies=(0.1,))]
    text = page(record(found, task=EVIL, references=[{"name": EVIL, "parameters": 5, "accuracy": 0.5}]))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert") > 6


@pytest.mark.parametrize(
    ("trials", "part"),
    [
        ([trial(1)], "It is the only point of the search that was trained to its end. Every point was measured"),
        ([trial(1, state="stopped", accuracies=(0.5,))], "No trial was trained to its end"),
        ([trial(1, state="failed", accuracies=(), error="E: no"), trial(2)], "E: no"),
        ([trial(1, accuracies=(0.5,)), trial(2, accuracies=(0.5,))], "too few trials to say"),
    ],
    ids=["one", "none ended", "one failed", "all equal"],
)
def test_whatever_the_search_came_to_there_is_a_page(page, trials, part):
    text = page(record(trials))
    assert part in text
    assert "nan" not in re.sub(r"<[^>]*>", "", text[text.index("<body>") :].lower())


def test_the_reason_names_the_accuracy_that_had_to_be_reached():
    cut = trial(5, 8, (0.95,))
    cut.origin = "cut"  # of a point that was trained too, which counts
    trained = [trial(1, 1, (0.7, 0.9)), trial(2, 2, (0.7, 0.897)), trial(3, 8, (0.7, 0.902))]
    found = record([*trained, cut, trial(4, 4, (0.95,), "stopped")])
    assert found["winner"]["trials"] == [1]
    assert reason_text(found).startswith(
        "Of the 3 points that were trained to their end, it has the fewest parameters with an accuracy of at least "
        "0.897, which is 0.005 below the best one."
    )
    assert config_text(found) == "tasks:\n  trec:\n    adapter:\n      rank: 1\n"


def test_each_rung_says_what_became_of_its_trials():
    left = trial(3, accuracies=(0.4,), state="waiting")
    trials = [trial(1), trial(2, accuracies=(0.6,), state="stopped"), left, trial(4, seed=1)]
    assert rung_rows(record(trials)["trials"]) == [
        RungRow(10, 3, 1, {"stopped": 1, "waiting": 1}, 0.6), RungRow(30, 1, 0, {"finished": 1}, 0.8)]  # fmt: skip
    assert rung_rows(record([trial(1, accuracies=(0.5,))])["trials"]) == []


def test_equal_errors_are_one_line_and_the_most_frequent_comes_first():
    trials = [trial(i, accuracies=(), state="failed", error="rare" if i == 1 else "often") for i in range(1, 5)]
    assert [(row.error, row.trials) for row in error_rows(all_trials(record([*trials, trial(9)])))] == [
        ("often", (2, 3, 4)), ("rare", (1,))]  # fmt: skip


def test_of_many_trials_the_front_is_drawn_in_any_case():
    trials = [{"spec_hash": str(i)} for i in range(100)]
    found = [int(each["spec_hash"]) for each in thin(trials, 10, [trials[17], trials[18]])]
    assert len(found) == 10
    assert {17, 18} <= set(found)
    assert found == sorted(found)
    assert thin(trials, 100) == trials


TWENTY = record(searched(25), references=REFERENCES)


@pytest.mark.parametrize(
    "figure",
    [
        draw_trials(TWENTY["trials"], TWENTY["front"], "a&b", REFERENCES, TWENTY["winner"]),
        draw_trials([], [], "none", [{"name": "LoRA-1", "parameters": 5, "accuracy": None}]),
        draw_finalists(TWENTY["finalists"], TWENTY["winner"]),
        draw_importances({"rank": 0.75, "<lr>": 0.25}),
        draw_importances({"rank": 0.0}),
        draw_choices(TWENTY["trials"], choice_names(TWENTY), TWENTY["winner"]),
        draw_choices(TWENTY["trials"][:1], choice_names(TWENTY), TWENTY["winner"]),
        draw_hypervolume(TWENTY["hypervolumes"], "area"),
    ],
)
def test_every_chart_of_a_search_is_well_formed_svg(figure):
    text = to_svg(figure, "a <label>")
    assert ElementTree.fromstring(text).get("aria-label") == "a <label>"
    assert "var(--" in text


def test_the_chart_of_trials_marks_them_and_says_which_are_below_its_axis():
    trials = [trial(1, 1, (0.8,)), trial(2, 2, (0.9,)), trial(3, 2, (0.1,), "stopped"), trial(4, 2, (0.89,), seed=1),
              trial(5, 4, (), "failed")]  # fmt: skip
    found = record(trials)
    figure = draw_trials(found["trials"], found["front"], "trec", REFERENCES, found["winner"])
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["Pareto front"] == [[1001, 0.8], [2002, pytest.approx(0.895)]]  # the mean over its seeds
    assert lines["stopped early (1 below)"] == []
    assert lines["confirming"] == [[2004, 0.89]]
    assert [x for x, _ in lines["LoRA"]] == [24576, 98304, 393216]
    assert lines["recommended"] == [[2002, pytest.approx(0.895)]]
    assert {"rank 1, 2+3", "rank 2, 2+3", "LoRA-16"} <= {text.get_text() for text in figure.axes[0].texts}


def test_without_data_a_chart_is_left_out():
    same = [{"point": {"rank": 1}, "accuracy": 0.5, "parameters": 1}] * 3
    assert draw_choices(same, ["rank"], None) is draw_finalists([], None) is draw_hypervolume([1.0], "area") is None
    assert to_svg(None, "none") == ""


def test_the_importances_find_the_choice_that_decides():
    references = [trial(200 + rank, rank, (0.99,), lora=rank) for rank in (1, 4, 16)]
    for each in references:
        each.origin = "reference"
    shares = choice_importances([*searched(120), *references])
    assert sum(shares.values()) == pytest.approx(1)
    assert set(list(shares)[:2]) == {"lr", "rank"}
    assert shares["lr"] + shares["rank"] > 0.8 > 0.1 > shares["factors.o"]
    assert not {"factors", "lora"} & shares.keys()  # one option; no choice of the space


def test_too_few_trials_have_no_importances():
    few = [trial(i, 2 ** (i % 4), (0.5 + i / 100,)) for i in range(1, LEAST_TRIALS)]
    assert choice_importances([*few, *(trial(50 + i, 2, (0.9,), seed=i) for i in range(1, 9))]) is None
    assert choice_importances([*few, trial(20, 8, (0.8,))]) is not None
    assert choice_importances([trial(i, i, (0.5,)) for i in range(1, 30)]) is None


def test_the_hypervolume_grows_with_every_better_trial():
    values = [{"accuracy": a, "parameters": p, "spec_hash": str(i)}
              for i, (a, p) in enumerate([(0.7, 1000), (0.6, 2000), (0.8, 500), (0.9, 5000)])]  # fmt: skip
    found = hypervolumes(values, 10_000)
    assert found == [pytest.approx(hypervolume(values[: i + 1], 10_000)) for i in range(4)]
    assert found[0] == found[1] < found[2] < found[3]
    repeated = record([trial(1), trial(2, accuracies=(0.99,), seed=1)])
    assert len(repeated["hypervolumes"]) == 1


def test_a_search_records_its_data_its_picture_and_its_report(tmp_path):
    logged, noted = [], {}
    registry = SimpleNamespace(
        run_record=lambda run: SimpleNamespace(began=datetime.now(UTC)),
        log_file=lambda run, path: logged.append((run, path.name)),
        tag_run=lambda run, tags: noted.update(tags),
    )
    settings = SimpleNamespace(model_dump=lambda mode: {"trials": 2})
    plan = SimpleNamespace(
        config=SimpleNamespace(search=settings), folders=SimpleNamespace(library="lib"), base=SimpleNamespace(id="b")
    )
    found = [trial(1), trial(2, 4, (0.5, math.nan))]
    made = make_task_record("trec", found, 0.005, None, {"rank": (2, 4)}, 393216, lambda point: {"adapter": point})
    _log(plan, [made], None, registry, "r1", tmp_path)
    assert logged == [("r1", TRIALS), ("r1", PARETO_PLOT), ("r1", SEARCH_REPORT)]
    assert read_search_records(tmp_path / TRIALS)[0]["within"] == 0.005
    assert "search:\n  trials: 2" in (tmp_path / SEARCH_REPORT).read_text()
    note = "- trec: rank 2; factors 2+3. Validation accuracy 0.800, 2,001 parameters\n"
    assert note in noted["mlflow.note.content"]


def test_of_many_tasks_the_description_names_the_first():
    found = record([trial(1, accuracies=(0.5,), state="stopped")])
    text = describe_search([{**found, "task": f"t{i}"} for i in range(25)])
    assert "- t19: nothing, because no trial was trained to its end\n- and 5 more tasks\n" in text
