"""Run a library: the driver of ``ttmoe run``, stage 1 (experts) and stage 2 (the router)."""
