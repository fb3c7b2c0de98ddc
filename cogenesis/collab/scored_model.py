"""Builds the specification of a model that scores references."""

from __future__ import annotations

from pathlib import Path

from cogenesis.options.users import base_of
from export.bundle.writer import is_bundle
from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.errors import SettingsError
from personalization.models.device import Device
from personalization.models.libraries import prepare_command


def model_of(path: Path, threads: int, device: Device, adapter: Path | None = None) -> ModelSpec:
    """Return a model's specification; this hashes the weights of a directory.

    Raises:
        CogenesisError: the model or the adapter does not exist.
        SettingsError: an adapter file is given for a directory.
    """
    if is_bundle(path):
        from edge_runtime.adapters.adapter import load_adapter
        from edge_runtime.bundle.reader import open_bundle

        bundle = open_bundle(path, verify=False)
        identity = bundle.fingerprint(bundle.decoder())
        if adapter is not None:
            identity += f"+{load_adapter(adapter).fingerprint}"
            adapter = adapter.absolute()
        return ModelSpec(path.absolute(), identity, bundle.base, True, adapter, threads)
    if adapter is not None:
        raise SettingsError(f"--adapter belongs to a bundle, and this is none: {path}.")
    prepare_command()
    directory, base = base_of(path)
    return ModelSpec(directory, base.sha256, base.sha256, False, None, threads, str(device))
