"""Reads LoRA adapters that PEFT saved, and rejects anything but LoRA matrices on linear layers.

This needs neither PEFT nor torch: safetensors reads the matrices, and bfloat16 is decoded here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from edge_runtime.adapters.adapter import MAX_RANK
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH
from export.adapters.fused_targets import split_fused, split_modules, split_target
from export.errors import AdapterExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.manifest import DecoderSpec

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

Matrices = dict[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]

# Configuration fields that only describe the training, or that this module reads.
# fmt: off
_KNOWN_FIELDS = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
))
# fmt: on
# Fields that add to the model what LoRA matrices on its linear layers can't express.
_FOREIGN_FIELDS = {
    "use_dora": "DoRA's magnitudes",
    "bias": "trained biases",
    "lora_bias": "trained biases",
    "modules_to_save": "whole modules trained beside the matrices",
    "trainable_token_indices": "trained embeddings",
    "fan_in_fan_out": "Conv1D layers",
    "layer_replication": "replicated layers",
    "target_parameters": "matrices on bare parameters",
}
# These leave the base weights as they are. Others (PiSSA, OLoRA, LoftQ ...) move part of them into the matrices.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MATRIX = re.compile(
    r"(?P<path>(?:(?:model|language_model)\.)*layers\.(?P<layer>[0-9]{1,4})\.(?:self_attn|mlp)\.(?P<projection>\w+))"
    r"(?:\.base_layer)?\.(?P<half>lora_[AB])(?:\.\w+)?\.weight\Z"
)
_LARGEST_ALPHA = 1e9
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The parts of a LoRA configuration that describe its matrices.

    Attributes:
        rank, alpha: the defaults, for modules that no pattern matches.
        ranks, alphas: exceptions, by a regular expression for the module's name.
        root_scale: divide alpha by the square root of the rank instead of the rank.
        targets: names of the adapted modules; empty if the configuration gives a pattern instead.
        base_name: name of the base model.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(repr=False)
    alphas: Mapping[str, float] = field(repr=False)
    root_scale: bool
    targets: Sequence[str]
    base_name: str

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return self.ranks.get(_pattern(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor that scales the product of a module's matrices."""
        alpha = self.alphas.get(_pattern(self.alphas, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.root_scale else rank)


def read_peft_config(directory: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        AdapterExportError: the file is missing or damaged, or its method gives more than LoRA matrices.
    """
    path = directory / CONFIG_NAME
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterExportError(
            f"There is no PEFT adapter here: {directory} (no {CONFIG_NAME}). Name the directory that PEFT's "
            "save_pretrained, or `cogenesis adapter train`, has written."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterExportError(
            f"The adapter's configuration can't be read: {path} ({error}). Save it again."
        ) from None
    if not isinstance(body, dict):
        raise AdapterExportError(f"The adapter's configuration is not a JSON object: {path}. Save it again.")
    _refuse_other_methods(path, body)
    ranks, alphas = body.get("rank_pattern") or {}, body.get("alpha_pattern") or {}
    rank, alpha, targets = body.get("r"), body.get("lora_alpha"), body.get("target_modules")
    if (
        not _is_rank(rank)
        or not _is_alpha(alpha)
        or not isinstance(ranks, dict)
        or not all(map(_is_rank, ranks.values()))
        or not isinstance(alphas, dict)
        or not all(map(_is_alpha, alphas.values()))
    ):
        raise AdapterExportError(
            f"The adapter's configuration is not valid: {path}. 'r' and 'rank_pattern' must have whole numbers from 1 "
            f"to {MAX_RANK}, 'lora_alpha' and 'alpha_pattern' numbers to {_LARGEST_ALPHA:g}."
        )
    named = [str(name) for name in targets] if isinstance(targets, list) else []
    base_name = str(body.get("base_model_name_or_path") or "")
    return PeftConfig(rank, alpha, ranks, alphas, bool(body.get("use_rslora")), named, base_name)


def read_peft_matrices(directory: Path, config: PeftConfig, spec: DecoderSpec) -> Matrices:
    """Read the matrices in the layout of a decoder's graph, scaled.

    Args:
        directory: the directory with `adapter_model.safetensors`.
        config: the adapter's configuration.
        spec: the decoder that will use the matrices.

    Returns:
        Maps (layer, projection) to (A (in_features, r), B (r, out_features)), float32, with the scale folded into B.

    Raises:
        AdapterExportError: the file is missing or damaged, a matrix does not fit the configuration or the decoder, or
            a value is not finite.
    """
    path = directory / WEIGHTS_NAME
    halves: dict[tuple[int, str], dict[str, NDArray[np.float32]]] = {}
    modules: dict[tuple[int, str], str] = {}
    for name, array in _tensors(path):
        match = _matched(path, name)
        place = int(match["layer"]), match["projection"]
        if modules.setdefault(place, match["path"]) != match["path"] or match["half"] in halves.get(place, {}):
            raise AdapterExportError(f"The adapter has two matrices for one place: {path}, '{name}'.")
        halves.setdefault(place, {})[match["half"]] = array
    widths = {projection: (site.in_features, width) for site in spec.lora for projection, width in site.projections}
    halves, modules = split_fused(halves, widths), split_modules(modules)
    matrices: Matrices = {}
    for place, pair in sorted(halves.items()):
        where = f"{path}, layer {place[0]}, {place[1]}"
        if place[1] not in widths or place[0] >= spec.layers:
            wider = ", or export that decoder with `adapter_sites` all" if spec.backend == BACKEND_EXECUTORCH else ""
            raise AdapterExportError(
                f"The adapter does not fit the bundle: {where}. Its {spec.backend} decoder has {spec.layers} layers "
                f"with {', '.join(widths)}: train on these alone{wider}."
            )
        if len(pair) != 2:
            raise AdapterExportError(f"The adapter has half a pair of matrices: {where}. Save it again.")
        rank = config.rank_of(modules[place])
        inner, outer = widths[place[1]]
        if pair["lora_A"].shape != (rank, inner) or pair["lora_B"].shape != (outer, rank):
            raise AdapterExportError(
                f"The adapter's matrices do not fit: {where} has A {pair['lora_A'].shape}, B {pair['lora_B'].shape}; "
                f"configuration and bundle want ({rank}, {inner}) and ({outer}, {rank})."
            )
        if not all(np.isfinite(half).all() for half in pair.values()):
            raise AdapterExportError(
                f"The adapter holds numbers that are not finite: {where}. Train it again, with a lower learning rate."
            )
        matrices[place] = pair["lora_A"].T, pair["lora_B"].T * np.float32(config.scale_of(modules[place]))
    wanted = {part for target in config.targets for part in split_target(target.rpartition(".")[2])}
    lacking = wanted - {projection for _, projection in matrices}
    if lacking or not matrices:
        raise AdapterExportError(
            f"The adapter has no matrices for {', '.join(sorted(lacking)) or 'anything'}: {path}. Save it again."
        )
    return matrices


def _refuse_other_methods(path: Path, body: Mapping[str, Any]) -> None:
    method = body.get("peft_type")
    if method != "LORA":
        raise AdapterExportError(f"Only LoRA adapters can be exported, this one is {method}: {path}. Train with LoRA.")
    start = body.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise AdapterExportError(
            f"The adapter's training began with '{start}', which changes the base model's weights: {path}. Convert it "
            "to plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    for name, value in body.items():
        if value and value != "none" and name not in _KNOWN_FIELDS:
            what = _FOREIGN_FIELDS.get(name, f"something that this version does not know ('{name}')")
            raise AdapterExportError(
                f"The adapter needs {what}, which a bundle can't carry: {path}, field '{name}'. Train it as plain LoRA."
            )


def _tensors(path: Path) -> list[tuple[str, NDArray[np.float32]]]:
    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        return [(name, _float32(path, name, tensor)) for name, tensor in sorted(found, key=lambda item: item[0])]
    except FileNotFoundError:
        older = " It has the older adapter_model.bin." if path.with_suffix(".bin").exists() else ""
        raise AdapterExportError(
            f"The adapter's weights are missing: {path}.{older} Save it again with safe_serialization=True."
        ) from None
    except (OSError, SafetensorError) as error:
        raise AdapterExportError(f"The adapter's weights can't be read: {path} ({error}). Save it again.") from None


def _float32(path: Path, name: str, tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in _FLOATS:
        raise AdapterExportError(f"The adapter's matrices are not floating point: {path}, '{name}' is {kind}.")
    with np.errstate(over="ignore"):  # the caller rejects infinite values
        return np.frombuffer(data, _FLOATS[kind]).astype(np.float32).reshape(shape)


def _matched(path: Path, name: str) -> re.Match[str]:
    """Parse a tensor's name, without the parts that wrappers add (torch.compile, FSDP, checkpointing)."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    match = _MATRIX.match(".".join(parts).removeprefix("base_model.model."))
    if match is None:
        what = next((what for part, what in _FOREIGN_TENSORS.items() if part in name), "a tensor without a counterpart")
        raise AdapterExportError(
            f"The adapter has {what}, which a bundle can't carry: {path}, '{name}'. "
            "Train it as plain LoRA on the linear layers of attention and MLP."
        )
    return match


_FOREIGN_TENSORS = {
    "lora_embedding": "matrices on the embedding",
    "lora_magnitude": "DoRA's magnitudes",
    "lm_head": "matrices or weights of the head",
    "embed_tokens": "weights of the embedding",
    "bias": "trained biases",
    "modules_to_save": "whole modules",
    "token_adapter": "trained embeddings",
}


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """Return the first pattern that matches the end of a module's name, as PEFT does."""
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise AdapterExportError(f"The adapter's pattern '{pattern}' is not valid ({error}).") from None
    return ""


def _is_rank(value: Any) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and -_LARGEST_ALPHA <= value <= _LARGEST_ALPHA
