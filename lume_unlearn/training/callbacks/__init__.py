"""Callbacks of the trainer: measuring, recording, scoring, stopping."""
