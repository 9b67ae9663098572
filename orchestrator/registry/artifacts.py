"""Names of the artifacts that runs and registered versions hold."""

EVALUATION = "evaluation.json"  # the router's test, beside the router
CONFUSION_PLOT = "confusion.png"
TRIALS = "trials.json"  # a search's trials and Pareto front
PARETO_PLOT = "pareto.png"
INCIDENTS = "incidents.json"  # the failures of a run
REPORT = "report.html"
