"""``ttmoe data``: the tasks of a config as training will see them."""
