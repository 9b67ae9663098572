"""What MLflow's pages show of a library first: its experiment as model training, named views of the runs, and a note.

MLflow's UI reads all of it from tags of the experiment. A view is a JSON text with the columns, filter and order of the
table of runs; the key in its tag opens it by ``?viewStateShareKey=<key>`` and it is listed under *Views*.
"""

from __future__ import annotations

import json

from mlflow.entities import Experiment

from orchestrator.registry.store import TAG, Store

EXPERTS_VIEW, RUNS_VIEW, TRIALS_VIEW, SEARCHES_VIEW = "experts", "runs", "trials", "searches"
VIEW_TAG = "mlflow.sharedViewState."
_NOTE = "mlflow.note.content"
# No more than fit on a screen beside name, time and duration; attributes such as the data set would stand before them.
_EXPERT_COLUMNS = ("metrics.`test.accuracy`", "params.`adapter.rank`", "params.`parameters`")
_RUN_COLUMNS = ("attributes.`Source`", "attributes.`Version`", "attributes.`Description`")
_TRIAL_COLUMNS = ("metrics.`accuracy`", "metrics.`parameters`", "params.`rank`", "params.`factors`", "params.`lr`",
                  f"tags.`{TAG}state`", f"tags.`{TAG}origin`")  # fmt: skip
_SEARCH_COLUMNS = (f"tags.`{TAG}task`", "attributes.`Description`")

_View = tuple[str, str, str, tuple[str, ...]]  # name, kind of the runs, what orders them, columns
_VIEWS: dict[str, _View] = {
    EXPERTS_VIEW: ("Experts", "expert", "metrics.`test.accuracy`", _EXPERT_COLUMNS),
    RUNS_VIEW: ("Runs", "run", "attributes.start_time", _RUN_COLUMNS),
}
_SEARCH_VIEWS: dict[str, _View] = {
    TRIALS_VIEW: ("Trials", "trial", "metrics.`accuracy`", _TRIAL_COLUMNS),
    SEARCHES_VIEW: ("Searches", "search", "attributes.start_time", _SEARCH_COLUMNS),
}


def prepare_pages(store: Store, experiment: Experiment, library: str, *, search: bool = False) -> None:
    """Set the tags of an experiment that MLflow's UI reads, unless they exist: a user may have changed them.

    Args:
        store: An open store.
        experiment: The experiment of the library or of its searches.
        library: Name of the library.
        search: Whether the experiment is the one of the searches.
    """
    for key, value in page_tags(experiment.experiment_id, library, search=search).items():
        if key not in experiment.tags:
            store.client.set_experiment_tag(experiment.experiment_id, key, value)


def page_tags(experiment_id: str, library: str, *, search: bool = False) -> dict[str, str]:
    """Return the tags that ``prepare_pages`` sets, by key."""
    views = _SEARCH_VIEWS if search else _VIEWS
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    links = " · ".join(f"[{name}]({page}{key})" for key, (name, *_) in views.items())
    what = f"Searches of the library {library}" if search else f"Library {library}"
    # The tag chooses between MLflow's pages for model training and for generative AI. MLflow 3.17 has a switch for this
    # beside the page, which stands on the latter at first and overrules the tag; `workflowType` in a link sets it.
    tags = {"mlflow.experimentKind": "custom_model_development", _NOTE: f"**{what}**: {links}"}
    return tags | {VIEW_TAG + key: _view(*view) for key, view in views.items()}


def _view(name: str, kind: str, order: str, columns: tuple[str, ...]) -> str:
    """Return the text of a view: the runs of one kind, the highest value of ``order`` first."""
    # With a filter, MLflow does not nest runs below their parents. The router's run is one of kind expert.
    others = f" AND tags.`{TAG}task` != 'router'" if kind == "expert" else ""
    state = {
        "searchFilter": f"tags.`{TAG}kind` = '{kind}'{others}",
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
    }
    created = 0  # the same text at every call
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})
