"""The report: one page that stands alone, whatever the run came to, and what it is collected from."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from orchestrator.config.loading import load_config
from orchestrator.report.charts import (
    draw_bands,
    draw_confusion,
    draw_learning_curve,
    draw_quality,
    smooth_curve,
)
from orchestrator.report.collect import MAX_CURVES, MAX_POINTS, choose_curves, collect_report, downsample
from orchestrator.report.content import Curve, ExpertRow, ResourceUsage, RoutingReport, RunReport, SearchReport
from orchestrator.report.figures import save_png, to_svg
from orchestrator.report.incidents import Incident, incidents_to_json
from orchestrator.report.page import write_report
from orchestrator.report.search_charts import draw_trials
from orchestrator.report.time_use import ExpertTime, TimeUse
from workers.failure import Failure
from workers.stopwatch import ACTIVITIES

TRIAL = {"parameters": 5, "accuracy": 0.5, "rank": 2, "factors": "2+2"}
EVIL = "<script>alert(1)</script>\"'&"


class Seen(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def row(i, **more):
    values = dict(version=1, classes=3, majority=0.4, accuracy=0.9 - i / 5000, routed=0.88, parameters=4000 + i)
    values |= dict(lora_parameters=300_000, steps=300, seconds=40.0 + i % 7)
    return ExpertRow(**({"task": f"task-{i}", "state": "registered"} | values | more))


def curve(i, steps=200):
    loss = tuple((float(s), 2 * math.exp(-s / 50)) for s in range(1, steps + 1))
    return Curve(f"task-{i}", loss, tuple((float(s), s / steps) for s in range(50, steps + 1, 50)))


def incident(key="task-0", message="no key 'label'", **more):
    values = dict(when=1.78e9, stage="Stage 1", key=key, attempt=1, failure=Failure("code", "ValueError", message))
    return Incident(**(values | dict(action="given up: the code or the data failed") | more))


def report(count=6, **more):
    experts = tuple(row(i) for i in range(count))
    names = tuple(each.task for each in experts)
    counts = tuple(tuple(50 if i == j else (i + j) % 2 for j in range(count)) for i in range(count))
    values = dict(
        library="lib", status="FINISHED", base="a/base", base_digest="d" * 64, version="0.1", commit="c" * 40,
        began=datetime(2026, 5, 4, tzinfo=UTC), seconds=754.0, experts=experts,
        curves=tuple(curve(i) for i in range(min(count, MAX_CURVES))), incidents=(incident(),),
        routing=RoutingReport(2, 0.98, 50 * count, names, counts), usage=ResourceUsage(4, 2, 0.9),
        config="library: lib\n",
    )  # fmt: skip
    return RunReport(**(values | more))


@pytest.fixture
def page(tmp_path):
    def write(content):
        path = tmp_path / "new" / "report.html"
        write_report(path, content)
        assert [each.name for each in path.parent.iterdir()] == ["report.html"]
        return path.read_text()

    return write


def test_the_page_says_what_there_is_and_stands_alone(page):
    text = page(report(search=SearchReport("task-1", ({"parameters": 9, "accuracy": 0.5, "rank": 2},), ())))
    for part in (
        "a/base",
        "dddddddddddddddd",
        "cccccccccccc",
        "13 minutes",
        "task-5",
        "0.880",
        "1.33%",
        "90.0%",
        "4 times",
    ):
        assert part in text, part
    for part in ("ValueError: no key &#39;label&#39;", "given up", "library: lib", "Search on task-1"):
        assert part in text, part
    seen = Seen(text)
    assert not [tag for tag, _ in seen.tags if tag in ("link", "img", "iframe", "object")]
    assert not [attributes for _, attributes in seen.tags if {"src", "action"} & attributes.keys()]
    assert {attributes["href"] for tag, attributes in seen.tags if tag == "a"} == {"#incidents"}
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert seen.count("svg") == 6 + 1 + 1 + 1  # curves, quality, routing, search


def times(count, **more):
    """Where the time went: experts with all activities, and one that an older version trained."""
    activities = {name: 0.5 for name in ACTIVITIES} | more
    new = [ExpertTime(f"task-{i}", 1234.5 + i, activities, 0.02) for i in range(count - 1)]
    return ResourceUsage(4, 2, 0.9, TimeUse((*new, ExpertTime("old", 7.0, {}, 0.1)), 3 * count, count, 0.03 * count))


def test_the_page_says_where_the_seconds_went(page):
    text = page(report(usage=times(3)))
    section = text[text.index('<section id="time">') :].partition("</section>")[0]
    assert "<tr><td>waiting<td>3.00<td>25.0%</tr>" in section
    assert "<tr><td>other<td>3.00<td>25.0%</tr>" in section
    assert "took the driver 0.09 seconds" in section
    assert '<tr><td>old<td>7.00<td colspan="6">not measured<td>0.10</tr>' in section
    assert section.index("task-1<td>1,236") < section.index("task-0<td>1,234") < section.index("<td>old<")
    assert "Where the seconds went" not in page(report())


def test_all_text_is_escaped(page):
    text = page(
        report(
            library=EVIL, base=EVIL, config=EVIL, facts={EVIL: EVIL}, version=EVIL, status="FAILED",
            experts=(row(0, task=EVIL), row(1, task="b", state="failed", error=EVIL)),
            curves=(Curve(EVIL, ((1.0, 1.0),), ((1.0, 0.5),)),),
            incidents=(
                incident(EVIL, EVIL, stage=EVIL, action=EVIL),
                incident(message=f"{EVIL}\n", failure=Failure("code", EVIL, EVIL, EVIL)),
            ),
            routing=RoutingReport(1, 0.5, 9, (EVIL, "b"), ((1, 2), (3, 4))),
            usage=ResourceUsage(time=TimeUse((ExpertTime(EVIL, 1.0, {}, 1.0),))),
            search=SearchReport(EVIL, ({"parameters": 9, "accuracy": 0.5, "rank": EVIL, "factors": EVIL},), ()),
        )
    )  # fmt: skip
    assert Seen(text).count("script") == 1
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") > 12


def test_a_password_in_the_config_stays_out(page):
    text = page(report(config="tracking:\n  uri: postgresql://me:secret@host/db\n"))
    assert "secret" not in text
    assert "postgresql://***@host/db" in text


@pytest.mark.parametrize(
    "content",
    [
        report(1),
        report(routing=None, incidents=(), curves=(), usage=ResourceUsage()),
        report(
            status="FAILED", routing=None, curves=(),
            experts=tuple(row(i, state="failed", accuracy=None, routed=None, seconds=None) for i in range(3)),
        ),
        report(
            experts=(ExpertRow("bare", "waiting"), row(1, accuracy=math.nan)),
            curves=(Curve("bare", ((1.0, math.nan),), ()),),
        ),
        report(experts=()),
    ],
    ids=["one expert", "no router, nothing failed", "all failed", "nothing known", "no expert"],
)  # fmt: skip
def test_whatever_the_run_came_to_there_is_a_page(page, content):
    text = page(content)
    assert text.rstrip().endswith("</html>")
    assert "nan" not in re.sub(r"<[^>]*>", "", text[text.index("<body>") : text.index("<script>")].lower())
    assert ("not trained in this run" in text) == (content.routing is None)


def test_a_thousand_experts_make_a_small_page_soon(page):
    failures = tuple(incident(f"task-{i}", failure=Failure("code", "E", "m", "t" * 9000)) for i in range(1000))
    content = report(1000, incidents=failures, config="tasks:\n" + "  a: 1\n" * 10_000)
    began = time.process_time()
    text = page(content)
    assert time.process_time() - began < 15
    assert len(text.encode()) < 3_000_000
    assert Seen(text).count("svg") == 12 + 2 + 1  # worst and slowest, bands, quality; the routing is a table
    assert "Most frequent routing errors" in text
    assert "800 more" in text


@pytest.mark.parametrize(
    "figure",
    [
        draw_learning_curve(curve(0)),
        draw_learning_curve(Curve("x", (), ())),
        draw_learning_curve(Curve("x", ((5.0, math.inf), (6.0, 0.0)), ((6.0, 1.0),))),
        draw_bands([curve(i) for i in range(20)], "loss"),
        draw_bands([curve(0), Curve("x", (), ())], "accuracy"),
        draw_quality([row(0)]),
        draw_quality([row(i) for i in range(100)]),
        draw_trials([TRIAL], [TRIAL], "a&b"),
        draw_trials([], [], "none"),
        draw_confusion(((0, 0), (0, 9)), ("a&b", "<c>")),
    ],
)
def test_every_chart_is_well_formed_svg_in_the_colours_of_the_page(figure):
    text = to_svg(figure, "a <label>")
    root = ElementTree.fromstring(text)
    assert (root.get("role"), root.get("aria-label")) == ("img", "a <label>")
    width, height = map(float, root.get("viewBox").split()[2:])
    assert (width, height) == pytest.approx(tuple(figure.get_size_inches() * 72))
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(set(ids)) == len(ids)
    assert "var(--" in text


def test_a_learning_curve_shows_loss_and_accuracy():
    axes, right = draw_learning_curve(curve(0)).axes
    raw, smooth = (line.get_xydata() for line in axes.lines)
    assert [tuple(point) for point in raw] == list(curve(0).loss)
    assert smooth[-1] == pytest.approx((200, 2 * math.exp(-4)), rel=0.2)
    assert [tuple(point) for point in right.lines[0].get_xydata()] == list(curve(0).accuracy)
    assert right.get_ylim() == (0, 1)


def test_experts_at_one_point_share_a_label():
    rows = [row(0, task="a", parameters=9, accuracy=0.901), row(1, task="b", parameters=9, accuracy=0.9)]
    (label,) = draw_quality(rows).axes[0].texts
    assert label.get_text() == "a, b"


def test_bands_are_quantiles_over_experts():
    flat = [Curve(f"t{i}", (), ((1.0, i / 20), (10.0, i / 20))) for i in range(21)]
    (median,) = draw_bands(flat, "accuracy").axes[0].lines
    assert list(median.get_ydata()) == pytest.approx([0.5] * 25)


def test_the_confusion_matrix_shows_shares_and_counts():
    axes = draw_confusion(((9, 1), (0, 10)), ("a", "b")).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0.0, 1.0]]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "10", "9"]
    many = [str(i) for i in range(40)]
    assert not draw_confusion([[1] * 40] * 40, many).axes[0].texts


def test_the_same_chart_has_the_same_text():
    first, second = (to_svg(draw_learning_curve(curve(0)), "curve") for _ in range(2))
    assert first == second


def test_a_figure_becomes_a_png_file(tmp_path):
    save_png(draw_trials([TRIAL], [TRIAL], "trec"), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_there_is_no_chart(page):
    assert draw_bands([], "loss") is draw_quality([row(0, accuracy=None)]) is None
    assert Seen(page(report(40, curves=()))).count("svg") == 1  # accuracy against parameters; the routing is a table


def test_frequent_errors_come_with_their_share():
    routing = RoutingReport(1, 0.9, 20, ("a", "b"), ((9, 1), (3, 7)))
    assert routing.frequent_errors() == [("b", "a", 3, 0.3), ("a", "b", 1, 0.1)]


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smooth_curve(np.array([4.0, 4.0])) == pytest.approx([4.0, 4.0])
    assert smooth_curve(np.array([])).size == 0


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(step, float(step)) for step in range(1, 1001)]
    thin = downsample(points, MAX_POINTS, lambda values: sum(values) / len(values))
    assert len(thin) == MAX_POINTS
    assert (thin[0], thin[-1]) == ((5.0, 3.0), (1000.0, 998.0))
    assert downsample([], MAX_POINTS, sum) == ()


def test_of_many_the_worst_and_slowest_have_their_curves():
    rows = [row(i) for i in range(1000)]
    rows[17], rows[400] = row(17, accuracy=0.1), row(400, seconds=999.0)
    rows[3] = row(3, state="waiting")
    chosen = [each.task for each in choose_curves(rows, MAX_CURVES)]
    assert len(set(chosen)) == len(chosen) == MAX_CURVES
    assert {"task-17", "task-400"} <= set(chosen)
    assert "task-3" not in chosen
    assert len({name for name in chosen if int(name[5:]) < 500}) > 10


def test_incidents_come_back_as_they_were_written():
    incidents = [incident(), incident(key="", failure=Failure("died", "E", "ü", "trace"))]
    assert json.loads(incidents_to_json(incidents)) == [asdict(each) for each in incidents]
    assert json.loads(incidents_to_json([])) == []


@pytest.fixture(scope="module")
def recorded(fresh_store, tmp_path_factory):
    """A store after a run of four tasks: made, there before, failed, and never begun; and the run's plan."""
    from orchestrator.registry import Registry

    root = tmp_path_factory.mktemp("root")
    shutil.copy(fresh_store, root)
    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    folder = root / "expert"
    folder.mkdir()
    (folder / "expert.json").write_text("{}")
    metrics = {"test.accuracy": 0.9, "steps": 250.0, "seconds.job": 12.0, "rows.cut": 17.0, "parameters.head": 770.0}
    old = registry.start_run("lib", "old", {}, "", {})
    new = registry.start_run("lib", "new", {"version": "0.1", "mlflow.source.git.commit": "ab12"}, "", {})
    for task, parent in (("cached", old), ("made", new), ("failed", new)):
        run = registry.expert_run("lib", parent, task, f"{task}1", {})
        registry.log_metrics(run, [("train.loss", 1 / step, step, step) for step in range(1, 501)])
        if task == "failed":
            registry.tag_run(run, {"error": "ValueError: no"})
            registry.finish_run(run, "FAILED")
        else:
            registry.register_expert("lib", task, f"{task}1", folder, run, {}, metrics=metrics)
            registry.finish_run(run, "FINISHED")
    rows = {"train": 80, "validation": 1234, "test": 10}
    data = SimpleNamespace(label_names=("a", "b"), majority=0.5, rows=rows, removed={"duplicates": 4321}, labelled=True)
    experts = {
        task: SimpleNamespace(
            job=SimpleNamespace(data=data, spec_hash=f"{task}1", parameters=10),
            lora_parameters=1000,
            named=None,
            labels=("a", "b"),
        )
        for task in ("made", "cached", "failed", "never")
    }
    base, folders = SimpleNamespace(id="base", digest="d1"), SimpleNamespace(library="lib")
    config = load_config("quickstart", []).config.model_copy(update={"search": None})
    plan = SimpleNamespace(
        config=config, folders=folders, base=base, experts=experts, router_hash="r1", search_hash=None
    )
    return registry, plan, new


@pytest.mark.integration
def test_a_report_is_collected_from_the_record(recorded, page):
    registry, plan, run = recorded
    retried = [incident("made", failure=Failure("died", "E", "gone")), incident("failed"), incident("failed")]
    found = collect_report(plan, registry, run, retried, ResourceUsage(3, 2), status="FAILED")
    by_task = {each.task: each for each in found.experts}
    assert {task: each.state for task, each in by_task.items()} == {
        "made": "registered", "cached": "cached", "failed": "failed", "never": "waiting",
    }  # fmt: skip
    made = by_task["made"]
    assert (made.version, made.accuracy, made.steps, made.seconds, made.attempts) == (1, 0.9, 250, 12.0, 2)
    assert (made.classes, made.parameters, made.share, made.routed) == (2, 10, 0.01, None)
    assert (by_task["failed"].attempts, by_task["failed"].error) == (2, "ValueError: no")
    assert by_task["failed"].steps == 500
    assert [each.task for each in found.curves] == ["made", "cached", "failed"]
    assert len(found.curves[0].loss) == 500 // 3 + 1
    assert (found.status, found.version, found.commit, found.routing) == ("FAILED", "0.1", "ab12", None)
    assert "sms_spam" in found.config
    assert (made.rows["validation"], made.removed, made.cut, made.head) == (1234, {"duplicates": 4321}, 17, 770)
    text = page(found)
    assert "ValueError: no" in text
    assert all(f"<td>{number}" in text for number in ("1,234", "4,321", "17", "770"))


@pytest.mark.integration
def test_a_router_brings_its_test(recorded, tmp_path):
    registry, plan, run = recorded
    evaluation = {
        "tasks": {"made": {"rows": 10, "answered_right": 8, "routed_right": 9}},
        "routing_accuracy": 0.9,
        "confusion": [[9, 1], [0, 10]],
        "confusion_tasks": ["made", "cached"],
    }
    folder = tmp_path / "router"
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    registry.register_router("lib", "r2", folder, {}, run, {})
    found = collect_report(plan, registry, run, router_hash="r2")
    assert found.routing == RoutingReport(1, 0.9, 10, ("made", "cached"), ((9, 1), (0, 10)))
    assert {each.task: each.routed for each in found.experts}["made"] == 0.8
    assert replace(found, routing=None) != found
