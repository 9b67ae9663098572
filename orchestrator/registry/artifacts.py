"""File names of the artifacts of runs and registered versions."""

EVALUATION = "evaluation.json"  # test results of a router, in its model folder
CONFUSION_PLOT = "confusion.png"
TRIALS = "trials.json"  # trials and Pareto front of a search
PARETO_PLOT = "pareto.png"
SEARCH_REPORT = "search.html"
INCIDENTS = "incidents.json"  # failures during a run
REPORT = "report.html"
ALONE_ACCURACY = (
    "alone_accuracy"  # metrics of a router: of experts that a config names, without routing; a dot, the task
)
