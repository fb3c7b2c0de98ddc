"""Computes a source model with transformers in float32, with the weights of one module in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from safetensors import SafetensorError, safe_open

from export.check.described import known_config
from export.errors import SourceError, UnsupportedModelError
from export.model.fused import split_names
from export.model.text_part import text_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from export.model.rope import Rope

REFERENCE = f"transformers {transformers.__version__}"


class Reference:
    """The model that a configuration and weights describe, as transformers computes it.

    Args:
        config: a Hugging Face configuration, as its JSON file has it.
        weights: tensors by their Hugging Face names; read when a module needs them, and not kept.
        rope: rotary positions that the configuration can't express; None takes the configuration's.

    Raises:
        UnsupportedModelError: this version of transformers can't build the model.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rope: Rope | None = None
    ) -> None:
        full = built_config(config)
        try:
            with init_empty_weights(include_buffers=False), quiet():
                model = transformers.AutoModelForCausalLM.from_config(
                    full, dtype=torch.float32, attn_implementation="eager"
                )
        except Exception as error:  # transformers does not say what it raises
            raise UnsupportedModelError(
                f"{REFERENCE} can't build this model, so the export can't be checked "
                f"({' '.join(str(error).split())[:200]}). Set `check` to False to export it unchecked."
            ) from None
        self._model = model.eval()
        if rope is not None:
            rotary = self._model.get_decoder().rotary_emb
            rotary.inv_freq = torch.tensor(rope.inverse_frequencies)
            rotary.attention_scaling = rope.attention_factor
        named = _NamedAsTransformersNames(weights, model)
        attach_align_device_hook(self._model, torch.device("cpu"), offload=True, weights_map=named)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute the logits of all positions: (S, vocab_size) float32.

        Raises:
            SourceError: a tensor is missing.
            UnsupportedModelError: transformers fails on this model.
        """
        try:
            with torch.no_grad(), quiet():
                logits = self._model(torch.tensor([list(token_ids)]), use_cache=False).logits
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{REFERENCE} can't compute this model, so the export can't be checked "
                f"({' '.join(str(error).split())[:200]}). Check its configuration."
            ) from None
        found: NDArray[np.float32] = logits[0].numpy()
        return found

    def layer_inputs(self, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Compute what enters each layer: (S, hidden) float32 each."""
        found: list[NDArray[np.float32]] = []
        layers = self._model.get_decoder().layers
        handles = [
            layer.register_forward_pre_hook(lambda _, args: found.append(args[0][0].detach().numpy().copy()))
            for layer in layers
        ]
        self.logits(token_ids)
        for handle in handles:
            handle.remove()
        return found


def built_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration with the family's defaults filled in.

    Raises:
        SourceError: a setting is not valid.
        UnsupportedModelError: this version of transformers does not accept the configuration.
    """
    known = known_config(config)
    try:
        return transformers.AutoConfig.for_model(**known)
    except Exception as error:  # transformers 5 has exceptions of its own for this
        raise UnsupportedModelError(
            f"{REFERENCE} does not accept the model's configuration, so the export can't be checked "
            f"({' '.join(str(error).split())[:200]}). Set `check` to False to export it unchecked."
        ) from None


class LoadedReference:
    """A model that transformers has loaded whole."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Reference.logits`."""
        with torch.no_grad():
            logits = self._network(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
        found: NDArray[np.float32] = logits[0].float().numpy()
        return found

    def layer_inputs(self, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:  # noqa: ARG002 (as `Reference`)
        """Return nothing, because families name their layers differently."""
        return []


class _NamedAsTransformersNames(Mapping[str, torch.Tensor]):
    """Finds tensors for a model: a tied head is the embedding, and a checkpoint without its head lacks the prefix."""

    def __init__(self, weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
        self._weights, self._prefix = weights, f"{model.base_model_prefix}."
        names = {module: f"{name}.weight" for name, module in model.named_modules()}
        self._tied = {}
        if model.config.tie_word_embeddings and model.get_output_embeddings() is not None:
            self._tied[names[model.get_output_embeddings()]] = names[model.get_input_embeddings()]

    def __getitem__(self, name: str) -> torch.Tensor:
        wanted = self._tied.get(name, name)
        for stored in (wanted, wanted.removeprefix(self._prefix)):
            if stored in self._weights:
                return self._weights[stored]
        raise SourceError(f"transformers needs the tensor '{wanted}', which the model's files lack.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class ReadWeights(Mapping[str, torch.Tensor]):
    """Tensors that a function reads by name; projections are joined where transformers stores them together."""

    def __init__(self, names: Sequence[str], read: Callable[[str], NDArray[np.float32]]) -> None:
        self._names, self._read = frozenset(names), read

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = list(split_names([name]))
        return torch.from_numpy(np.concatenate([self._read(part) for part in parts]))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._names.issuperset(split_names([name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class CheckpointWeights(Mapping[str, torch.Tensor]):
    """Tensors of a model directory, from the files that transformers reads, independent of our own reader.

    Raises:
        SourceError: the files can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        single, index = path / "model.safetensors", path / "model.safetensors.index.json"
        try:
            # transformers prefers the single file to the index.
            if single.is_file():
                with safe_open(single, framework="pt") as tensors:
                    files = dict.fromkeys(tensors.keys(), single)
            else:
                files = {name: path / file for name, file in json.loads(index.read_bytes())["weight_map"].items()}
            # Names in the text model alone, for directories of models that also read images.
            self._files = {text_tensor(stored): (file, stored) for stored, file in files.items()}
        except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
            raise SourceError(f"The weights can't be read: {path} ({error}). Download the model again.") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        file, stored = self._files[name]
        try:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(stored).float()
        except (OSError, SafetensorError) as error:
            raise SourceError(f"A weight file can't be read: {file} ({error}).") from None

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._files if name is not None)

    def __len__(self) -> int:
        return len(self._files)


class quiet:  # noqa: N801 (used like a function)
    """Keeps transformers' warnings off the screen."""

    def __enter__(self) -> None:
        self._level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._level)
