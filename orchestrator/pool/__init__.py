"""Run jobs on Ray: worker processes, capacity of the cluster and retries after failures."""
