"""Train and test the router on cached features."""
