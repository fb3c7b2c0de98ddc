"""Reads a tokenizer in the form that a bundle stores: tokenizer.json, chat template, special tokens, stop ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, pre_tokenizers, processors

from export.errors import SourceError
from export.model.weights import TokenizerAssets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer as HFTokenizer

# Tokens that end a turn in chat models, in addition to the configuration's eos token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>", "<|eom_id|>")

# Llama 3 splits text with this before merging (tokenizer.json of the published models).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Special tokens of GGUF files, by the chat template's names.
_GGUF_SPECIAL = {
    "ggml.unknown_token_id": "unk_token",
    "ggml.padding_token_id": "pad_token",
    "ggml.seperator_token_id": "sep_token",  # llama.cpp's spelling
    "ggml.cls_token_id": "cls_token",
    "ggml.mask_token_id": "mask_token",
}


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


def gguf_tokenizer(architecture: str, fields: Mapping[str, Any], where: str) -> TokenizerAssets:
    """Convert the tokenizer of a GGUF file.

    This calls transformers' converter on the parsed fields. `AutoTokenizer` would read the whole file three more
    times, and take special tokens from the defaults of another class.

    Args:
        architecture: `general.architecture`.
        fields: the file's fields below `tokenizer.`.
        where: its path, for error messages.

    Raises:
        SourceError: a field is missing, or the kind of tokenizer is unknown.
    """
    try:  # transformers 5
        from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    except ImportError:
        from transformers.integrations.ggml import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    known = {name: fields[field] for field, name in names.items() if field in fields}
    try:
        tokens, bos, eos = known["tokens"], known.get("bos_token_id"), known.get("eos_token_id")
        bos_token, eos_token = (None if special is None else tokens[special] for special in (bos, eos))
        backend, _ = convert_gguf_tokenizer(architecture, known)
    except Exception as error:  # transformers does not say what its converters raise
        raise SourceError(f"The file's tokenizer can't be read: {where} ({_first_line(error)}).") from None
    _split_as_trained(backend, str(fields.get("ggml.pre", "")))
    if fields.get("ggml.add_bos_token", True) and bos_token:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos_token, "$A"], pair=[bos_token, "$A", "$B"], special_tokens=[(bos_token, bos)]
        )
    others = {name: tokens[fields[field]] for field, name in _GGUF_SPECIAL.items() if fields.get(field) is not None}
    stops = [eos, fields.get("ggml.eot_token_id")]
    return assets(backend, fields.get("chat_template"), bos_token, eos_token, stops, others)


def _split_as_trained(backend: HFTokenizer, pre: str) -> None:
    """Make `backend` split text as the file specifies (`tokenizer.ggml.pre`), which transformers ignores."""
    if pre == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre == "llama-bpe":
        regex = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([regex, bytes_only])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
