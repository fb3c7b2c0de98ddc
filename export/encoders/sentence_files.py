"""Reads how sentence-transformers turns an encoder's hidden states into a vector, from the files that it saves.

Files: `modules.json` lists the modules, and each has a directory with a `config.json`
(https://www.sbert.net/docs/package_reference/sentence_transformer/models.html).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from export.errors import SourceError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

Pooling: TypeAlias = Literal["mean", "cls"]
"""What makes a vector of the last hidden states: their mean, or the first token's."""

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = {*_MODES, "word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode"}
# Normalized vectors have the same directions; scores here are dot products of vectors as they are.
_MODULES = {"Transformer", "Pooling", "Normalize"}


def read_pooling(path: Path) -> Pooling:
    """Return an encoder's pooling; a directory without these files has the mean, as sentence-transformers gives it.

    Raises:
        SourceError: a file is damaged.
        UnsupportedModelError: a module, a pooling, a prompt or a setting can't be done.
    """
    modules = _read(path / "modules.json", [])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise SourceError(f"The list of modules is damaged: {path / 'modules.json'}. Download the encoder again.")
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise UnsupportedModelError(
                f"The encoder has a module '{kind}', which can't be exported: {path / 'modules.json'}."
            )
    prompt = _object(path / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt is not None:
        raise UnsupportedModelError(
            f"The encoder puts the prompt '{prompt}' in front of every text, which can't be exported: "
            f"{path / 'config_sentence_transformers.json'}."
        )
    places = [str(module.get("path")) for module in modules if str(module.get("type", "")).endswith(".Pooling")]
    settings = _object(path / (places[0] if places else "1_Pooling") / "config.json")
    return _pooling(settings, path)


def _pooling(settings: dict[str, Any], path: Path) -> Pooling:
    unknown = sorted(settings.keys() - _KNOWN)
    if unknown:
        raise UnsupportedModelError(f"The encoder's pooling has a setting that is not known: '{unknown[0]}', {path}.")
    stated = settings.get("pooling_mode")
    chosen = {_MODES[name] for name in _MODES if settings.get(name)}
    chosen |= set(stated if isinstance(stated, list) else [stated]) if stated else set()
    if not chosen or chosen == {"mean"}:
        return "mean"
    if chosen == {"cls"}:
        return "cls"
    raise UnsupportedModelError(
        f"The encoder's pooling can't be exported: {', '.join(sorted(map(str, chosen)))}, {path}. "
        "Mean and CLS pooling can."
    )


def _object(path: Path) -> dict[str, Any]:
    body = _read(path, {})
    if not isinstance(body, dict):
        raise SourceError(f"The file is no JSON object: {path}. Download the encoder again.")
    return body


def _read(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return missing
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"The file can't be read: {path} ({error}). Download the encoder again.") from None
