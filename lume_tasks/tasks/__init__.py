"""What the task YAMLs name."""
