"""TT-LoRA experts, banks of them on one frozen base, and the router that picks among them.

This package stands on its own: it knows nothing of clusters, registries, configs or the command line.
"""
