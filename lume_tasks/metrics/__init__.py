"""The scores as pure functions."""
