"""Rows of a run: read, encoded, ordered."""
