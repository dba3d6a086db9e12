"""LUME unlearning benchmark for lm-evaluation-harness: data, prompts, metrics and scores."""
