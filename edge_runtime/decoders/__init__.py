"""Decoders behind one protocol: ONNX Runtime (fast or portable graphs) and ExecuTorch."""

from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.prompt_cache import read_prompt_cache, write_prompt_cache
from edge_runtime.decoders.protocol import Decoder, PromptCache

__all__ = ["Decoder", "PromptCache", "open_decoder", "read_prompt_cache", "write_prompt_cache"]
