"""The model classes lume-hf and lume-vllm."""
