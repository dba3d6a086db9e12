"""Loading, forward passes, the reference model."""
