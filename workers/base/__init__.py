"""Find, convert and load the frozen base model."""
