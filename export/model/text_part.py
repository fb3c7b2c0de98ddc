"""Finds the text model inside the directory of a model that also reads images (Gemma 3 of 4B and more)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from export.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT_TYPES = {"gemma3": "gemma3_text"}
# Keys that concern images only.
_IMAGE_KEYS = frozenset(
    {"text_config", "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"}
)
_IMAGE_TENSORS = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector)\.")
_TEXT_PREFIX = re.compile(r"language_model\.(model\.|lm_head\.)|model\.language_model\.")


def text_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the configuration of the text model; that of a model for text alone comes back as it is.

    Raises:
        SourceError: the text model's part is not an object.
    """
    kind = config.get("model_type")
    if kind not in _TEXT_TYPES:
        return dict(config)
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise SourceError(f"The configuration of a '{kind}' has no text_config: {where}. Download the model again.")
    around = {key: value for key, value in config.items() if key not in _IMAGE_KEYS}
    return {**around, **inner, "model_type": _TEXT_TYPES[kind]}


def text_tensor(name: str) -> str | None:
    """Return the name that a tensor has in the text model alone; None if it belongs to the part for images."""
    if _IMAGE_TENSORS.match(name):
        return None
    match = _TEXT_PREFIX.match(name)
    return name if match is None else (match[1] or "model.") + name[match.end() :]
