"""``ttmoe doctor``: check a machine or a cluster, train a tiny expert there, and drill the failures of long runs."""
