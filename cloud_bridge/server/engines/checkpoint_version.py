"""Refuses checkpoints and GGUF files that the installed transformers would load wrongly without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from gguf import GGUFReader
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cloud_bridge.server.errors import ServeError

# GGUF files of these are loaded right. Of others transformers overlooks fields, such as windows and caps.
_GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Ways to split text (`tokenizer.ggml.pre`) that transformers has; it ignores all others.
_GGUF_SPLITS = ("llama-bpe", "smollm", "gpt-2", "olmo", "starcoder", "refact", "qwen2")
_GGUF_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_GGUF_FIELDS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
_VERSION_5 = int(transformers.__version__.partition(".")[0]) >= 5


def check_loadable(directory: Path) -> None:
    """Check that the installed transformers reads a model directory's settings.

    Version 4 ignores the `rope_parameters` that version 5 saves, and computes with a base of 10,000. It also takes the
    word "gelu" of Gemma's first files literally.

    Raises:
        ServeError: the directory needs transformers 5, and version 4 is installed.
    """
    config = _json_object(directory / "config.json")
    misread = bool(config.get("rope_parameters")) or (
        config.get("model_type") == "gemma" and config.get("hidden_act") == "gelu"
    )
    if misread and not _VERSION_5:
        raise ServeError(
            f"Transformers {transformers.__version__} would misread this model, which needs version 5: {directory}. "
            "Run `pip install 'transformers>=5'`, or export the model and serve its bundle."
        )


def check_gguf(file: Path) -> None:
    """Check that transformers loads a GGUF file as llama.cpp does; it ignores what it does not know.

    Raises:
        ServeError: the file has something that transformers ignores; the message names it.
    """
    try:
        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items() if name in _GGUF_FIELDS}
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ServeError(f"This is not a usable GGUF file: {file} ({error}). Download it again.") from None
    architecture, kind, split = (fields.get(name) for name in _GGUF_FIELDS)
    factors = [tensor.name for tensor in reader.tensors if tensor.name in _GGUF_FACTORS]
    if architecture not in _GGUF_ARCHITECTURES:
        ignored = f"fields of the architecture '{architecture}'"
    elif factors:
        ignored = f"the tensor '{factors[0]}'"
    elif kind == "gpt2" and split not in _GGUF_SPLITS:
        ignored = f"how the file splits text (tokenizer.ggml.pre is '{split}')"
    else:
        return
    raise ServeError(
        f"transformers ignores {ignored}, and would give wrong rows: {file}. Export the file with `cogenesis export "
        "onnx` and serve the bundle, or give the original model directory."
    )


def load_tokenizer(directory: Path, **gguf: str) -> Any:
    """Load a tokenizer, also one that transformers 5 saved under a class name that version 4 does not know.

    Raises:
        Exception: transformers can't load it, and does not say what it raises.
    """
    saved = _json_object(directory / "tokenizer_config.json").get("tokenizer_class")
    newer = not _VERSION_5 and not gguf and saved == "TokenizersBackend"
    kind = PreTrainedTokenizerFast if newer else AutoTokenizer
    return kind.from_pretrained(directory, local_files_only=True, **gguf)


def _json_object(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}  # loading the model will say what is wrong
    return body if isinstance(body, dict) else {}
