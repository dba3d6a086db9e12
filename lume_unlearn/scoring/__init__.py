"""Score models with the tasks of the harness."""
