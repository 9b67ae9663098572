"""Plan a run: resolve the config, compare it with the registry, and forecast resources and time."""
