"""Plan a run: what a config asks for, what the registry already holds, and what the rest takes."""
