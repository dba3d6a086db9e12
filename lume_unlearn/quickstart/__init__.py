"""Everything once, offline, on a tiny model."""
