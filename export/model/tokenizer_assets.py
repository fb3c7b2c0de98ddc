"""Reads a tokenizer in the form that a bundle stores: tokenizer.json, chat template, special tokens, stop ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from export.model.weights import TokenizerAssets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer as HFTokenizer

# Tokens that end a turn in chat models, in addition to the configuration's eos token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>", "<|eom_id|>")


def assets(
    backend: HFTokenizer,
    chat_template: str | None,
    bos_token: str | None,
    eos_token: str | None,
    stops: Iterable[Any],
    special_tokens: Mapping[str, Any] | None = None,
) -> TokenizerAssets:
    """Convert a tokenizer to the form that a bundle stores.

    Args:
        backend: the tokenizer; this turns its padding and truncation off.
        chat_template: Jinja source, if the model has one.
        bos_token: the chat template's `bos_token`.
        eos_token: the chat template's `eos_token`.
        stops: token ids, or lists of them, that end an answer. Tokens that end a turn in the template are added.
        special_tokens: the chat template's other special tokens by name; None for none.
    """
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    template = chat_template or ""
    ids: set[int] = set()
    for stop in stops:
        ids.update(item for item in (stop if isinstance(stop, list) else [stop]) if isinstance(item, int))
    ids.update(vocabulary[end] for end in _TURN_ENDS if end in vocabulary and end in template)
    return TokenizerAssets(
        json=json.dumps(json.loads(backend.to_str()), ensure_ascii=False, separators=(",", ":")),
        chat_template=template,
        bos_token=bos_token or "",
        eos_token=eos_token or "",
        stop_token_ids=tuple(sorted(ids)),
        special_tokens=_other_tokens(special_tokens or {}),
    )


def _other_tokens(tokens: Mapping[str, Any]) -> dict[str, str | tuple[str, ...]]:
    """Return special tokens by name, in the manifest's form: texts or tuples of them, without BOS and EOS."""
    return {
        name: tuple(map(str, token)) if isinstance(token, list | tuple) else str(token)
        for name, token in tokens.items()
        if token and name not in ("bos_token", "eos_token")
    }
