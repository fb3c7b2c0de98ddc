"""Refuses checkpoints that the installed transformers would load with other settings than they were saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cloud_bridge.server.errors import ServeError

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
