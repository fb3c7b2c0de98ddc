"""Gives the installed transformers a checkpoint's configuration in the form that it reads.

Version 4 ignores the `rope_parameters` that version 5 saves, and computes with a base of 10,000 without saying so.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from export.errors import SourceError, UnsupportedModelError
from export.model.rope import rope_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NEWER = "rope_parameters"
_SIZES = ("max_position_embeddings",)
# Version 4's own names for base and part in some families.
_OTHER_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def transformers_config(path: Path) -> Any:
    """Return the configuration of a model directory for transformers' `from_pretrained` and `from_config`.

    Args:
        path: the directory, saved by any version of transformers.

    Raises:
        SourceError: the configuration is damaged or not valid.
        UnsupportedModelError: the installed transformers can't express the model's rotary positions.
    """
    from transformers import AutoConfig, logging

    from export.model.hf_source import read_config

    logging.disable_progress_bar()  # commands show their own

    saved = read_config(path)
    try:
        if not needs_translation(saved):
            return AutoConfig.from_pretrained(path, local_files_only=True)
        where = str(path / "config.json")
        config = AutoConfig.for_model(**_for_version_4(saved, where))
    except (SourceError, UnsupportedModelError):
        raise
    except Exception as error:  # transformers does not say what it raises
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"The model's configuration is not valid: {path / 'config.json'} ({reason}).") from None
    _check_known(config, saved, where)
    return config


def readable_fields(saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration's fields in the form that the installed transformers reads; a copy.

    Args:
        saved: the parsed `config.json`, saved by any version.
        where: its path, for error messages.

    Raises:
        SourceError: the settings of the rotary positions are not valid.
        UnsupportedModelError: the installed transformers can't express them.
    """
    copied = copy.deepcopy(dict(saved))
    return _for_version_4(copied, where) if needs_translation(saved) else copied


def needs_translation(saved: Mapping[str, Any]) -> bool:
    """Whether the installed transformers would misread a configuration without a word."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) >= 5:
        return False
    return bool(saved.get(_NEWER)) or (saved.get("model_type") == "gemma" and saved.get("hidden_act") == "gelu")


def _for_version_4(saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    config = {name: value for name, value in saved.items() if name != _NEWER}
    if config.get("model_type") == "gemma" and config.get("hidden_act") == "gelu":
        config["hidden_act"] = "gelu_pytorch_tanh"  # see `from_hf_config`
    parameters = saved.get(_NEWER)
    if not parameters:
        return config
    if "rope_local_base_freq" in _accepted(str(saved.get("model_type"))):
        local = rope_settings(saved, where, "sliding_attention")
        if local["rope_type"] != "default":
            raise _unreadable(saved, where)
        config["rope_local_base_freq"] = local["rope_theta"]
        settings = rope_settings(saved, where, "full_attention")
    else:
        settings = rope_settings(saved, where)
    for name in ("rope_theta", "partial_rotary_factor"):
        config[name] = config[_OTHER_NAMES[name]] = settings.pop(name)
    for name in _SIZES:
        settings.pop(name, None)
    if settings["rope_type"] == "default":
        config["rope_scaling"] = None
    else:
        config["rope_scaling"] = settings
        if settings["rope_type"] == "longrope":
            config["original_max_position_embeddings"] = settings["original_max_position_embeddings"]
    return config


def _check_known(config: Any, saved: Mapping[str, Any], where: str) -> None:
    """Refuse a family whose version 4 would not look at the translated settings."""
    names = _accepted(str(saved.get("model_type")))
    if saved.get(_NEWER) and not names & {"rope_theta", _OTHER_NAMES["rope_theta"]}:
        raise _unreadable(saved, where)
    part = getattr(config, "partial_rotary_factor", 1.0)
    if saved.get(_NEWER) and part != 1.0 and not names & {"partial_rotary_factor", "rotary_pct"}:
        raise _unreadable(saved, where)


def _accepted(family: str) -> set[str]:
    """Return the names of the settings that a family's configuration class takes."""
    from transformers import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        return set()
    return set(inspect.signature(CONFIG_MAPPING[family].__init__).parameters)


def _unreadable(saved: Mapping[str, Any], where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Transformers 5 saved this model of type '{saved.get('model_type')}', and the installed version 4 can't "
        f"express its rotary positions: {where}. Install transformers 5 or newer."
    )
