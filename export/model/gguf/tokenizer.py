"""Converts the tokenizer of a GGUF file to `tokenizers`, so that it splits text as llama.cpp does.

`tokenizer.ggml.model` is "gpt2" for byte-level BPE with merges and "llama" for SentencePiece with scores.
`tokenizer.ggml.pre` says how BPE splits text before it merges, and the types of tokens which ones are matched whole.
The numbers of types are those of ggml's docs/gguf.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from export.errors import SourceError, UnsupportedModelError
from export.model.tokenizer_assets import assets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.model.weights import TokenizerAssets

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_SPACE = "\u2581"
# Special tokens of GGUF files, by the chat template's names.
_SPECIAL = {
    "ggml.unknown_token_id": "unk_token",
    "ggml.padding_token_id": "pad_token",
    "ggml.seperator_token_id": "sep_token",  # llama.cpp's spelling
    "ggml.cls_token_id": "cls_token",
    "ggml.mask_token_id": "mask_token",
}
# The splits are those of the published models' tokenizer.json.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"


def _cased_words(digits: str, ending: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
    )


_LLAMA3, _QWEN2 = _words(r"\p{N}{1,3}"), _words(r"\p{N}")
_SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "smaug-bpe": _LLAMA3,
    "tekken": _cased_words(r"\p{N}", ""),
    "gpt-4o": _cased_words(r"\p{N}{1,3}", rf"{_CONTRACTIONS}?"),
    "llama4": _cased_words(r"\p{N}{1,3}", rf"{_CONTRACTIONS}?"),
}
# A text that is a token as a whole is not merged.
_IGNORE_MERGES = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"})
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell", "command-r"})
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen"})  # their models compose characters first
# llama.cpp puts BOS in front of these unless the file says otherwise.
_ADD_BOS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"})
_PLAIN = frozenset({"gpt-2", "phi-2", "olmo"})
KNOWN_SPLITS = frozenset({*_SPLITS, *_SINGLE_DIGITS, *_PLAIN})
"""Values of `tokenizer.ggml.pre` that are converted."""


def gguf_tokenizer(fields: Mapping[str, Any], where: str) -> TokenizerAssets:
    """Convert the tokenizer of a GGUF file.

    Args:
        fields: the file's fields below `tokenizer.`.
        where: its path, for error messages.

    Raises:
        SourceError: a field is missing or damaged.
        UnsupportedModelError: the file's kind of tokenizer, or its way to split text, is not known here.
    """
    kind, split = str(fields.get("ggml.model", "")), str(fields.get("ggml.pre", "default"))
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"The file has a tokenizer of a kind that is not known here (tokenizer.ggml.model is '{kind}'): {where}. "
            "Export the model from its Hugging Face directory."
        )
    if kind == "gpt2" and split not in KNOWN_SPLITS:
        raise UnsupportedModelError(
            f"The file splits text in a way that is not known here (tokenizer.ggml.pre is '{split}'): {where}. "
            "Export the model from its Hugging Face directory."
        )
    try:
        types = list(fields["ggml.token_type"]) if "ggml.token_type" in fields else []
        tokens = _without_padding(list(fields["ggml.tokens"]), types)
        backend = _byte_level(tokens, fields["ggml.merges"], split) if kind == "gpt2" else _pieces(tokens, fields)
        _match_whole(backend, tokens, types)
        bos, eos = fields.get("ggml.bos_token_id"), fields.get("ggml.eos_token_id")
        bos_token, eos_token = (None if special is None else tokens[special] for special in (bos, eos))
        others = {name: tokens[fields[field]] for field, name in _SPECIAL.items() if fields.get(field) is not None}
    except KeyError as error:
        raise SourceError(f"The file's tokenizer lacks the field tokenizer.{error.args[0]}: {where}.") from None
    except Exception as error:  # tokenizers raises plain Exception
        raise SourceError(f"The file's tokenizer can't be read: {where} ({_first_line(error)}).") from None
    if fields.get("ggml.add_bos_token", kind == "llama" or split in _ADD_BOS) and bos_token:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos_token, "$A"], pair=[bos_token, "$A", "$B"], special_tokens=[(bos_token, bos)]
        )
    stops = [eos, fields.get("ggml.eot_token_id"), fields.get("ggml.eom_token_id")]
    return assets(backend, fields.get("chat_template"), bos_token, eos_token, stops, others)


def _without_padding(tokens: list[str], types: list[int]) -> list[str]:
    """Drop the placeholders behind the vocabulary, which fill up the rows of the embedding and stand for no text."""
    count = len(tokens)
    while count and len(types) == len(tokens) and types[count - 1] == _UNUSED:
        count -= 1
    return tokens[:count]


def _byte_level(tokens: list[str], merges: list[str], split: str) -> HFTokenizer:
    """Build byte-level BPE (Radford et al., 2019)."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        # A space inside a part would be ambiguous, but bytes are written as visible characters.
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split in _IGNORE_MERGES)
    backend = HFTokenizer(model)
    if split in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(split)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pieces(tokens: list[str], fields: Mapping[str, Any]) -> HFTokenizer:
    """Build SentencePiece's BPE (Kudo and Richardson, 2018): of all pairs, the piece with the highest score first."""
    scores = fields["ggml.scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [
        (-scores[index], token[:cut], token[cut:])
        for token, index in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    pairs.sort(key=lambda pair: pair[0])
    unknown = fields.get("ggml.unknown_token_id")
    model = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, left, right in pairs],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = HFTokenizer(model)
    prefix = bool(fields.get("ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _match_whole(backend: HFTokenizer, tokens: list[str], types: list[int]) -> None:
    """Match control and user-defined tokens before anything is split; only control tokens are special."""
    for kind in (_CONTROL, _USER_DEFINED):
        special = kind == _CONTROL
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, own in zip(tokens, types, strict=False)
            if own == kind and token
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _pre_tokenizer(split: str) -> Any:
    if split in _SPLITS:
        regex = pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated")
        return pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return words


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
