"""Decide and record: config, plan, driver, registry, search, reports and the command line."""

import cluster  # noqa: F401  applies Ray's settings before any module here imports Ray
