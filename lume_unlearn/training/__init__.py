"""One run, from configuration to checkpoint."""
