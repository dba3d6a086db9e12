"""Results of the harness as a page and as a model card."""
