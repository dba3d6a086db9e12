"""Compare methods on one model: tune each with the same budget, then run the best settings with several seeds."""
