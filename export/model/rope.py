"""Reads a decoder's rotary positions from a Hugging Face configuration, in every form that it is saved in.

Since version 5, transformers saves all settings in `rope_parameters`, for some families once for each type of layer.
Earlier versions save `rope_theta`, `rope_scaling` and `partial_rotary_factor`. Both forms are read here, whatever
version is installed. The types are those of Su et al. (2021), linear interpolation (Chen et al., 2023), YaRN (Peng et
al., 2023), Llama 3.1 (Grattafiori et al., 2024) and LongRoPE (Ding et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.errors import SourceError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# Families whose files may leave the base out: transformers' default, the same in all versions.
_DEFAULT_THETA = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite", "olmo2"), 10_000.0),
    **dict.fromkeys(("stablelm", "ministral", "minicpm"), 10_000.0),
    "lfm2": 1_000_000.0,
    "smollm3": 2_000_000.0,
    "gemma3_text": 1_000_000.0,
}
# Families that rotate a part of each head unless the file says otherwise.
_DEFAULT_PART = {"stablelm": 0.25}
# In the older form, sliding layers of these families have a base of their own and are not scaled; its default.
_LOCAL_THETA = {"gemma3_text": 10_000.0}
_LOCAL = "sliding_attention"

_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Settings of any type. Those of another type are ignored, as transformers does, but an unknown one is refused.
_SETTINGS = (
    *_COMMON,
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "finetuned",  # a remark of YaRN's authors
)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: cos and sin of `position * inverse_frequencies`, both times `attention_factor`.

    Attributes:
        inverse_frequencies: half as many values as each head rotates; the first of the two halves that turn together
            starts at the head's first value, and the rest of the head is not rotated.
        attention_factor: 1.0 except for YaRN and LongRoPE.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


def rope_from_config(config: Mapping[str, Any], head_dim: int, where: str, layer_type: str | None = None) -> Rope:
    """Compute the rotary frequencies that a configuration describes, in float32 as transformers does.

    Args:
        config: the parsed `config.json` of a decoder, or the text part of one; in either form.
        head_dim: width of a head.
        where: the file's path, for error messages.
        layer_type: an entry of `layer_types`, as "sliding_attention", if the family's ropes differ by it. None for a
            family with one rope; it is an error if the file has several.

    Raises:
        UnsupportedModelError: the type of rope or one of its settings is unknown, or depends on the text's length.
        SourceError: a setting is missing, of the wrong type, or given twice with different values.
    """
    settings = rope_settings(config, where, layer_type)
    kind = settings["rope_type"]
    if kind not in _TYPES:
        raise UnsupportedModelError(
            f"The rotary positions are of type '{kind}', supported are {', '.join(_TYPES)}: {where}."
        )
    import torch

    try:
        part = float(settings["partial_rotary_factor"])
        rotated = int(head_dim * part)
        if not 0 < rotated <= head_dim or rotated % 2:
            raise SourceError(f"A part of {part} of a head of {head_dim} values can't be rotated: {where}.")
        exponents = torch.arange(0, rotated, 2, dtype=torch.int64).to(torch.float32) / rotated
        wavelengths = float(settings["rope_theta"]) ** exponents
        frequencies, factor = _TYPES[kind](wavelengths, settings)
    except KeyError as error:
        raise SourceError(f"Rotary positions of type '{kind}' need the setting {error}: {where}.") from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise SourceError(f"The settings of the rotary positions are not valid: {where} ({error}).") from None
    if not bool(torch.isfinite(frequencies).all()) or not math.isfinite(factor):
        raise SourceError(f"The settings of the rotary positions give no finite frequencies: {where}.")
    return Rope(tuple(float(value) for value in frequencies.tolist()), float(factor))


def plain_rope(theta: float, width: int) -> Rope:
    """Compute the frequencies 1 / theta^(2 i / width) in float32, as transformers does."""
    import torch

    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    return Rope(tuple(float(value) for value in (1.0 / (float(theta) ** exponents)).tolist()))


def right_length(config: Mapping[str, Any], where: str) -> int | None:
    """Return the number of positions for which `rope_from_config` is right; None means all of them.

    LongRoPE rotates all positions of a longer text by other factors (Ding et al., 2024, arXiv 2402.13753).
    """
    layer_types = config.get("layer_types")
    settings = rope_settings(config, where, layer_types[0] if isinstance(layer_types, list) and layer_types else None)
    return int(settings["original_max_position_embeddings"]) if settings["rope_type"] == "longrope" else None


def rope_settings(config: Mapping[str, Any], where: str, layer_type: str | None = None) -> dict[str, Any]:
    """Collect the settings of rotary positions from a configuration of either form.

    Args:
        config: see `rope_from_config`, as the other arguments.
        where: for error messages.
        layer_type: see there.

    Returns:
        The settings by transformers 5's names. `rope_type`, `rope_theta` and `partial_rotary_factor` are always there,
        and `original_max_position_embeddings` and `max_position_embeddings` if the configuration has a length.

    Raises:
        UnsupportedModelError: a setting is unknown, or layers differ and `layer_type` is None.
        SourceError: settings are missing or contradict each other.
    """
    family = str(config.get("model_type"))
    given, nested = _given(config, where, layer_type)
    settings = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        raise UnsupportedModelError(
            f"The rotary positions have a setting that is not known here, '{unknown[0]}': {where}."
        )
    local = layer_type == _LOCAL and not nested and (family in _LOCAL_THETA or "rope_local_base_freq" in config)
    if local:
        settings = {"rope_theta": config.get("rope_local_base_freq", _LOCAL_THETA.get(family))}
    kind = settings.pop("type", None)
    if kind is None and "rope_type" not in settings and "factor" in settings:
        raise SourceError(f"The rotary positions are scaled, but not said how (rope_type): {where}.")
    if settings.setdefault("rope_type", kind or "default") != (kind or settings["rope_type"]):
        raise SourceError(f"The rotary positions are of type '{kind}' and '{settings['rope_type']}' at once: {where}.")
    if not nested and not local:
        for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            _take(settings, name, config.get(name), where)
    theta = config.get("rope_theta") if nested else _DEFAULT_THETA.get(family)
    if "rope_theta" not in settings and theta is None:
        raise SourceError(f"The configuration names no base of its rotary positions (rope_theta): {where}.")
    settings.setdefault("rope_theta", theta)
    settings.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or _DEFAULT_PART.get(family, 1.0))
    length = config.get("max_position_embeddings")
    if length is not None:
        settings["max_position_embeddings"] = length
        settings.setdefault("original_max_position_embeddings", length)
    return settings


def _given(config: Mapping[str, Any], where: str, layer_type: str | None) -> tuple[Mapping[str, Any], bool]:
    """Return the settings as they stand in the file, and whether there they are given for each type of layer."""
    older, newer = (config.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    if not isinstance(older, Mapping) or not isinstance(newer, Mapping):
        raise SourceError(f"The settings of the rotary positions are not an object: {where}.")
    if older and newer:
        differing = sorted(name for name in older.keys() & newer.keys() if older[name] != newer[name])
        if differing or older.keys() - newer.keys() - {"type"}:
            raise SourceError(f"'rope_scaling' and 'rope_parameters' contradict each other: {where}. Remove one.")
    given = newer or older
    layer_types = config.get("layer_types")
    types = set(layer_types) if isinstance(layer_types, list) else set()
    nested = {name: value for name, value in given.items() if isinstance(value, Mapping) or name in types}
    if not nested:
        return given, False
    if len(nested) != len(given):
        raise SourceError(f"Some rotary settings are given by type of layer and some are not: {where}.")
    used = {name: value for name, value in nested.items() if not types or name in types} or nested
    if layer_type is None:
        chosen = next(iter(used.values()))
        if any(value != chosen for value in used.values()):
            raise UnsupportedModelError(
                f"The rotary positions differ by type of layer ({', '.join(used)}), which is not supported for models "
                f"of type '{config.get('model_type')}': {where}."
            )
    else:
        chosen = nested.get(layer_type)
        if chosen is None and types and layer_type not in types:
            chosen = next(iter(used.values()))  # no layer is of this type
    if not isinstance(chosen, Mapping):
        raise UnsupportedModelError(
            f"The configuration has no rotary positions for layers of type '{layer_type or next(iter(used))}': {where}."
        )
    return chosen, True


def _take(settings: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Add a setting that stands outside, unless it is inside already."""
    if value is None:
        return
    if settings.setdefault(name, value) != value:
        raise SourceError(
            f"The configuration gives two values for '{name}', {settings[name]} and {value}: {where}. "
            "Remove the wrong one."
        )


def _default(wavelengths: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, float]:  # noqa: ARG001
    return 1.0 / wavelengths, 1.0


def _linear(wavelengths: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    return 1.0 / wavelengths / float(settings["factor"]), 1.0


def _llama3(wavelengths: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Divide slow frequencies by the factor, keep fast ones, and mix both in between."""
    import torch

    factor, low, high, length = (
        float(settings[name])
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if low == high:
        raise ValueError("low_freq_factor equals high_freq_factor")
    plain = 1.0 / wavelengths
    periods = 2 * math.pi / plain
    share = (length / periods - low) / (high - low)
    mixed = (1 - share) * plain / factor + share * plain
    scaled = torch.where(periods > length / low, plain / factor, mixed)
    return torch.where(periods < length / high, plain, scaled), 1.0


def _yarn(wavelengths: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Divide the frequencies that turn less than `beta_slow` times within the original length (YaRN, section 3.2)."""
    import torch

    base, length = float(settings["rope_theta"]), float(settings["original_max_position_embeddings"])
    pairs = len(wavelengths)
    factor = settings.get("factor")
    factor = settings["max_position_embeddings"] / length if factor is None else float(factor)

    def pair_that_turns(times: float) -> float:
        return 2 * pairs * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    first, last = (pair_that_turns(float(settings.get(name) or usual)) for name, usual in _YARN_TURNS)
    if settings.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    steep = (last - first) or 0.001
    share = 1 - ((torch.arange(pairs, dtype=torch.float32) - first) / steep).clamp(0, 1)
    frequencies = 1.0 / (factor * wavelengths) * (1 - share) + 1.0 / wavelengths * share
    return frequencies, _yarn_attention(factor, settings)


_YARN_TURNS = (("beta_fast", 32), ("beta_slow", 1))


def _yarn_attention(factor: float, settings: Mapping[str, Any]) -> float:
    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    stated = settings.get("attention_factor")
    if stated is not None:
        return float(stated)
    over, under = settings.get("mscale"), settings.get("mscale_all_dim")
    if over and under:
        return temperature(float(over)) / temperature(float(under))
    return temperature(1.0)


def _longrope(wavelengths: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Divide by the factors for short texts; beyond the original length all positions rotate by others."""
    import torch

    length, longest = float(settings["original_max_position_embeddings"]), settings.get("max_position_embeddings")
    divisors = torch.tensor(settings["short_factor"], dtype=torch.float32)
    if divisors.shape != wavelengths.shape:
        raise ValueError(f"short_factor has {len(divisors)} values, not {len(wavelengths)}")
    longer = float(settings["factor"]) if longest is None else longest / length
    stated = settings.get("attention_factor")
    usual = math.sqrt(1 + math.log(longer) / math.log(length)) if longer > 1 else 1.0
    return 1.0 / (divisors * wavelengths), usual if stated is None else float(stated)


_TYPES: dict[str, Callable[[torch.Tensor, Mapping[str, Any]], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
