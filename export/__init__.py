"""Turns a Hugging Face model or a GGUF file into a bundle for a device; runs on the build machine."""
