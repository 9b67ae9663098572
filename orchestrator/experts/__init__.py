"""What ``ttmoe experts`` does, a module for each verb. ``orchestrator/experts/listing.py`` lists and promotes."""
