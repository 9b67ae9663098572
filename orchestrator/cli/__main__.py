"""``python -m orchestrator.cli``: the command line where its console script is not installed, as in a job."""

from orchestrator.cli import main

main()
