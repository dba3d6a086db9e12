"""The classes and functions that the task YAMLs name."""
