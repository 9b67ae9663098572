"""``ttmoe experts``: one module for each command, and what they share."""
