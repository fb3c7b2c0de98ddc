"""Reads the tokenizer of a Hugging Face directory from its files, whatever class they name.

`tokenizer.json` says how text becomes tokens. The other files add special tokens, the chat template and a few switches.
The names of classes differ between versions of transformers ("TokenizersBackend" is new in 5), so none is loaded.
"""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as HFTokenizer

from export.errors import SourceError
from export.model.tokenizer_assets import assets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from export.model.weights import TokenizerAssets

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# The files, except for further chat templates, of which nothing here uses any.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Lists of further special tokens; the second is transformers 5's name.
_MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# BERT's switches, and the same in its normalizer.
_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class HFTokenizerFiles:
    """A directory's tokenizer.

    Attributes:
        backend: the tokenizer, with all added tokens.
        special_tokens: text of each of `SPECIAL_TOKENS` that the tokenizer has.
        chat_template: Jinja source of the default template, or "".
        config: the parsed `tokenizer_config.json`, or {}.
    """

    def __init__(self, path: Path) -> None:
        """Read the files.

        Raises:
            SourceError: there is no tokenizer, it has no fast implementation, or files are damaged or disagree.
        """
        self.config = _json_object(path / "tokenizer_config.json")
        if not (path / "tokenizer.json").is_file():
            self._convert(path)
            return
        try:
            self.backend = HFTokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise SourceError(
                f"The model's tokenizer can't be read: {path / 'tokenizer.json'} ({_first_line(error)})."
            ) from None
        where = str(path)
        _refuse_unknown_switches(self.config, where)
        self.chat_template = _chat_template(path, self.config)
        stated = {**_json_object(path / "special_tokens_map.json"), **self.config}
        tokens = _special_tokens(stated)
        self.special_tokens = {name: token.content for name, token in tokens.items()}
        _add_tokens(self.backend, stated, tokens, where)
        _apply_switches(self.backend, self.config, self.special_tokens, where)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.backend.token_to_id(token)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a text, `model_max_length`; None if the files set no limit."""
        said = self.config.get("model_max_length")
        return said if isinstance(said, int) and 0 < said < 1 << 40 else None

    def fast_tokenizer(self) -> Any:
        """Return a `PreTrainedTokenizerFast` for code that calls transformers' interface."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            chat_template=self.chat_template or None,
            clean_up_tokenization_spaces=False,
            **self.special_tokens,
            **({} if self.max_tokens is None else {"model_max_length": self.max_tokens}),
        )

    def _convert(self, path: Path) -> None:
        """Let transformers convert a tokenizer in another format."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, local_files_only=True)
        except Exception as error:  # transformers does not say what it raises
            raise SourceError(f"The model's tokenizer can't be read: {path} ({_first_line(error)}).") from None
        if not tokenizer.is_fast:
            raise SourceError(f"The tokenizer has no tokenizer.json and can't be converted to one: {path}.")
        self.backend = tokenizer.backend_tokenizer
        given = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
        self.special_tokens = {name: str(token) for name, token in given.items() if token}
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default") or next(iter(template.values()), "")
        self.chat_template = template or ""


def hf_tokenizer(path: Path, config: Mapping[str, Any]) -> TokenizerAssets:
    """Read the tokenizer of a model directory.

    Args:
        path: the directory.
        config: its parsed `config.json`; its eos ids are stop ids, as are those of `generation_config.json`.

    Raises:
        SourceError: see `HFTokenizerFiles`.
    """
    files = HFTokenizerFiles(path)
    generation = _json_object(path / "generation_config.json", damaged={})
    stops = [config.get("eos_token_id"), generation.get("eos_token_id"), files.eos_token_id]
    bos, eos = (files.special_tokens.get(name) for name in ("bos_token", "eos_token"))
    return assets(files.backend, files.chat_template, bos, eos, stops, files.special_tokens)


def _special_tokens(stated: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Return the special tokens by name: what the files say, else the default of the class that they name."""
    defaults = {} if all(name in stated for name in SPECIAL_TOKENS) else _class_defaults(stated.get("tokenizer_class"))
    found = {}
    for name in SPECIAL_TOKENS:
        token = _token(stated[name] if name in stated else defaults.get(name))
        if token is not None:
            found[name] = token
    return found


def _class_defaults(name: Any) -> dict[str, Any]:
    """Return the special tokens that a class of transformers has by default; {} if it does not exist here."""
    import transformers

    wanted = str(name).removesuffix("Fast")
    for candidate in (f"{wanted}Fast", wanted):
        kind = getattr(transformers, candidate, None)
        if isinstance(kind, type) and kind.__name__ == candidate:
            parameters = inspect.signature(kind).parameters
            given = {special: parameters[special].default for special in SPECIAL_TOKENS if special in parameters}
            return {special: token for special, token in given.items() if isinstance(token, str)}
    return {}


def _add_tokens(backend: HFTokenizer, stated: Mapping[str, Any], named: Mapping[str, AddedToken], where: str) -> None:
    """Add the tokens that stand only beside `tokenizer.json`, with ids behind the others, as transformers does."""
    listed = stated.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise SourceError(f"'added_tokens_decoder' is not an object: {where}/tokenizer_config.json.")
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    for text, entry in sorted(listed.items(), key=lambda item: int(item[0]) if str(item[0]).isdigit() else -1):
        token = _token(entry)
        if token is None or not text.isdigit():
            raise SourceError(f"'added_tokens_decoder' has an entry that is no token, {text!r}: {where}.")
        if repr(token) not in present:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != int(text):
            raise SourceError(
                f"The token {token.content!r} has the id {backend.token_to_id(token.content)} in tokenizer.json, and "
                f"{text} in tokenizer_config.json: {where}. Download the model again."
            )
    more: list[Any] = []
    for name in _MORE_TOKENS:
        given = stated.get(name) or []
        more += given.values() if isinstance(given, dict) else given
    for token in (*named.values(), *filter(None, map(_token, more))):
        known = {added.content for added in backend.get_added_tokens_decoder().values()}
        if token.content not in known:
            token.special = True
            backend.add_tokens([token])


def _refuse_unknown_switches(config: Mapping[str, Any], where: str) -> None:
    for name in ("split_special_tokens", "fix_mistral_regex"):
        if config.get(name):
            raise SourceError(f"The tokenizer sets '{name}', which can't be carried over: {where}.")


def _apply_switches(
    backend: HFTokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str], where: str
) -> None:
    """Apply what `tokenizer_config.json` says and `tokenizer.json` does not do."""
    normalizer = backend.normalizer
    for name, attribute in _NORMALIZER.items():
        if name in config and hasattr(normalizer, attribute) and getattr(normalizer, attribute) != config[name]:
            setattr(normalizer, attribute, config[name])
            backend.normalizer = normalizer
    space, splitter = config.get("add_prefix_space"), backend.pre_tokenizer
    if isinstance(space, bool) and getattr(splitter, "add_prefix_space", space) != space:
        splitter.add_prefix_space = space
        backend.pre_tokenizer = splitter
    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    around = {}
    for name in ("bos_token", "eos_token"):
        token = special_tokens.get(name) if config.get(f"add_{name}") else None
        if token is None and config.get(f"add_{name}") and name == "eos_token":
            raise SourceError(f"The tokenizer adds an end-of-sequence token, but names none: {where}.")
        around[name] = [] if token is None else [(token, backend.token_to_id(token))]
    before, after = around["bos_token"], around["eos_token"]
    if backend.encode("", add_special_tokens=True).ids == [number for _, number in before + after]:
        return
    first, last = ([token for token, _ in group] for group in (before, after))
    second = [f"{token}:1" for token in first] + ["$B:1"] + [f"{token}:1" for token in last]
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last], pair=[*first, "$A", *last, *second], special_tokens=before + after
    )


def _chat_template(path: Path, config: Mapping[str, Any]) -> str:
    """Return the default chat template: from its own file, else from `tokenizer_config.json`."""
    found: dict[str, str] = {}
    try:
        if (path / "chat_template.jinja").is_file():
            found["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
        for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
            found[file.stem] = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The chat template can't be read: {path} ({error}). Download the model again.") from None
    if not found:
        given = config.get("chat_template")
        if isinstance(given, list):
            found = {str(entry.get("name")): str(entry.get("template")) for entry in given if isinstance(entry, dict)}
        elif given is not None:
            found = {"default": given}
    template = found.get("default") or next(iter(found.values()), "")
    if not isinstance(template, str):
        raise SourceError(f"The chat template is not text: {path / 'tokenizer_config.json'}.")
    return template


def _token(entry: Any) -> AddedToken | None:
    """Return a token that a file gives as text or as an object with flags; None if it gives none."""
    if isinstance(entry, str) and entry:
        return AddedToken(entry, special=True, normalized=False)
    if isinstance(entry, dict) and isinstance(entry.get("content"), str):
        flags = {name: entry[name] for name in _FLAGS if isinstance(entry.get(name), bool)}
        return AddedToken(entry["content"], **flags)
    return None


def _json_object(file: Path, damaged: dict[str, Any] | None = None) -> dict[str, Any]:
    """Parse a JSON object; {} if there is no such file, and `damaged`, if given, where it can't be read."""
    try:
        body = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if damaged is not None:
            return damaged
        raise SourceError(f"A file of the tokenizer can't be read: {file} ({error}). Download it again.") from None
    return body if isinstance(body, dict) else {}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
