"""Compare methods on one model: tune each with the same budget, then run the chosen settings with several seeds."""
