"""Cache what depends on the base and the data alone: tokens, trunk states and router features."""
