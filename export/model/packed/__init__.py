"""Reads Hugging Face checkpoints whose matrices are packed: GPTQ, AWQ, compressed-tensors and others."""
