"""Engines: how one process, or several that share each step, train experts on a base."""
