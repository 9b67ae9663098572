"""Train experts: batches, loop, checkpoints, evaluation and memory."""
