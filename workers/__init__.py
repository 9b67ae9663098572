"""One training process: data, loop, features, evaluation."""
