"""Tuning in one process: cuts of a trained expert to smaller ranks, and trials of a search."""
