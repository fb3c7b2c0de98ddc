"""Where in a model an adapter sits: names of linear layers for "qv", "attention" and "all", or as they are given."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from torch import nn

from personalization.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What families call the parts of their attention; the last entries hold several parts in one matrix.
_QUERY = ("q_proj", "q", "query", "q_lin", "c_attn", "query_key_value", "qkv_proj", "Wqkv")
_KEY = ("k_proj", "k", "key", "k_lin")
_VALUE = ("v_proj", "v", "value", "v_lin")
_OUTPUT = ("o_proj", "o", "out_proj", "out_lin")
_ROLES = {"qv": (_QUERY, _VALUE), "attention": (_QUERY, _KEY, _VALUE, _OUTPUT)}


def linear_layers(model: PreTrainedModel) -> frozenset[str]:
    """Names of a model's linear layers, the output head excepted; ask before there is an adapter on it."""
    head = model.get_output_embeddings()
    return frozenset(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def site_names(present: Set[str], targets: str) -> list[str]:
    """Names of the layers that an adapter for `targets` changes, sorted.

    Args:
        present: the model's `linear_layers`.
        targets: see `AdapterSettings.targets`.

    Raises:
        SettingsError: the model has no such layers.
    """
    if targets == "all":
        names = set(present)
    elif targets in _ROLES:
        names = {name for role in _ROLES[targets] for name in role if name in present}
    else:
        names = {name.strip() for name in targets.split(",")}
    missing = sorted(names - present) or ([] if names else [targets])
    if missing:
        raise SettingsError(
            f"The model has no linear layers for --targets {', '.join(missing)}. It has: {', '.join(sorted(present))}."
        )
    return sorted(names)
