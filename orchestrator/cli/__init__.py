"""The command line ``ttmoe``: each command reads its arguments and calls one function.

Commands import that function when they run, so that ``ttmoe --help`` imports none of torch, Ray and MLflow.
"""

from orchestrator.cli.commands import app, main

__all__ = ["app", "main"]
