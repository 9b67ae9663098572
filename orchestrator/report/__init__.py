"""Report a run: its HTML page, plots, incidents, and the summary in the terminal."""
