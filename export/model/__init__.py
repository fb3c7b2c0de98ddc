"""Finds and reads a model: Hugging Face directories and GGUF files."""
