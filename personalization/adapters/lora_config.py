"""An adapter's settings as PEFT's configuration, for one base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig

from personalization.models.adapter_sites import site_names

if TYPE_CHECKING:
    from personalization.adapters.settings import AdapterSettings
    from personalization.models.base_model import Base


def lora_config(base: Base, settings: AdapterSettings) -> LoraConfig:
    """PEFT's configuration of an adapter with these settings.

    Raises:
        SettingsError: the base has none of the layers that the settings name.
    """
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM" if base.seq2seq else "CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=site_names(base.linear, settings.targets),
    )
