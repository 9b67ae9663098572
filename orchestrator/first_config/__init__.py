"""``ttmoe init DATA...``: a config that is guessed from data files."""
