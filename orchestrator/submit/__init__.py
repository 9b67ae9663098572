"""``ttmoe submit`` and ``ttmoe jobs``: run a config on a cluster, from any machine that reaches it."""
