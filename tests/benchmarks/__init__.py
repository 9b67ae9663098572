"""Measurements against peers and limits: ``python -m tests.benchmarks [names...]``."""
