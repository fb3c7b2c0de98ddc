"""Runs llama.cpp's own tokenizer: the oracle of what a GGUF file's tokenizer does.

The package `xllamacpp` is a server; its shared library exports llama.cpp's C API, which is called here.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _ModelParams(ctypes.Structure):
    """`llama_model_params` of llama.h."""

    _fields_ = [
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    ]


@dataclass(frozen=True, slots=True)
class LlamaCppVocabulary:
    """The vocabulary of a GGUF file as llama.cpp read it."""

    handle: Any

    def __len__(self) -> int:
        return int(_library().llama_vocab_n_tokens(self.handle))

    def encode(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        ids = (ctypes.c_int32 * room)()
        count = _library().llama_tokenize(self.handle, raw, len(raw), ids, room, add_special, parse_special)
        assert count >= 0
        return list(ids[:count])

    def decode(self, ids: list[int]) -> str:
        """The text of the tokens, special ones included, without llama.cpp's cleaning of spaces."""
        return b"".join(self._piece(token) for token in ids).decode(errors="replace")

    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        return {token for token in range(len(self)) if _library().llama_vocab_is_eog(self.handle, token)}

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(1024)
        length = _library().llama_token_to_piece(self.handle, token, buffer, 1024, 0, True)
        assert length >= 0
        return buffer.raw[:length]


@contextmanager
def llama_cpp_vocabulary(path: Path) -> Iterator[LlamaCppVocabulary]:
    """Load the vocabulary of a GGUF file; a ValueError says that llama.cpp refuses it."""
    lib = _library()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise ValueError(f"llama.cpp refuses {path}")
    try:
        yield LlamaCppVocabulary(lib.llama_model_get_vocab(model))
    finally:
        lib.llama_model_free(model)


@functools.cache
def _library() -> Any:
    package = importlib.util.find_spec("xllamacpp")
    assert package is not None and package.origin, "pip install xllamacpp"
    lib = ctypes.CDLL(str(Path(package.origin).with_name("xllamacpp.abi3.so")))
    lib.llama_model_default_params.restype = _ModelParams
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParams]
    lib.llama_model_load_from_file.restype = ctypes.c_void_p
    lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    lib.llama_model_get_vocab.restype = ctypes.c_void_p
    lib.llama_model_free.argtypes = [ctypes.c_void_p]
    lib.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    lib.llama_tokenize.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool
    ]  # fmt: skip
    lib.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    lib.llama_vocab_is_eog.restype = ctypes.c_bool
    lib.llama_token_to_piece.argtypes = [
        ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool
    ]  # fmt: skip
    lib.llama_log_set.argtypes = [_LOG, ctypes.c_void_p]
    lib.llama_log_set(_silent, None)
    defaults = lib.llama_model_default_params()
    # The layout of the structure changes with llama.cpp; constraints.txt pins the version that it was written for.
    assert (defaults.n_gpu_layers, defaults.use_extra_bufts, defaults.vocab_only) == (-1, True, False)
    return lib


@_LOG
def _silent(level: int, text: bytes, data: Any) -> None:
    """Keep llama.cpp's log out of the tests' output."""
