"""What ``ttmoe experts`` does, a module for each verb. ``orchestrator/experts.py`` lists and promotes."""
