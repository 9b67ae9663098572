"""Jobs of a search: trials that train together up to a rung, and experts that are cut to smaller ranks."""
