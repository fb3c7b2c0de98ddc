"""Decoders as ONNX graphs."""
