"""The rows of a run: reading, encoding, order, packs."""
