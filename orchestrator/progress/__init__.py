"""Show progress: the live view of a run, ``ttmoe status`` and the MLflow UI."""
