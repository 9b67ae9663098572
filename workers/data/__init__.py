"""Read and prepare the data of a task: sources, columns, labels and splits."""
