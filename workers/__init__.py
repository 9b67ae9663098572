"""The code of one training process: data, base, training, caches, routing."""
