"""The unlearning methods: one file a family, and their registry."""
