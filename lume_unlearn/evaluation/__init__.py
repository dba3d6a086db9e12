"""Scoring through the harness, and audits."""
