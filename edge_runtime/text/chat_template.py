"""Renders a model's chat template: turns a conversation into the text that the model was trained to continue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_runtime.errors import BundleError, RequestError
from edge_runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2.parser import Parser

Message = Mapping[str, str]


class ChatTemplate:
    """A Jinja chat template, rendered in a sandbox with the names that Hugging Face templates expect.

    The template comes with the bundle and sees private text, but it is a pure function of its input: in the sandbox it
    can't use files or modules, and can't modify its arguments.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any] | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        """Compile the template.

        Args:
            source: Jinja source, `chat_template` of the manifest.
            special_tokens: values by name, such as `bos_token`; names that are missing are undefined in the template.
            variables: values by name, such as `enable_thinking`; they win over special tokens of the same name.

        Raises:
            BundleError: the source is not a valid template.
            RequestError: the template does not use a variable, or the variable is the conversation itself.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, LoopControlExtension]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        variables = variables or {}
        self._values = {"add_generation_prompt": True, "tools": None, "documents": None}
        self._values |= {**(special_tokens or {}), **variables}
        try:
            self._template = environment.from_string(source)
            used = meta.find_undeclared_variables(environment.parse(source)) if variables else set()
        except (TemplateError, RecursionError) as error:
            raise _broken(error) from None
        self.variables = frozenset(used - environment.globals.keys() - {"messages"})
        for name in variables:
            if name not in self.variables:
                listed = ", ".join(sorted(self.variables)) or "none"
                raise RequestError(
                    f"The chat template uses no variable '{name}', so setting it would change nothing. "
                    f"It uses: {listed}."
                )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool | None = None) -> str:
        """Render a conversation.

        Args:
            messages: each with `role` ("system", "user" or "assistant") and `content`, oldest first.
            add_generation_prompt: end with the text that makes the model answer; None does so unless the variable of
                this name says otherwise.

        Returns:
            The text. It already contains the special tokens, so tokenize it without adding them.

        Raises:
            BundleError: the template fails on this conversation, or rejects it.
        """
        try:
            asked = {} if add_generation_prompt is None else {"add_generation_prompt": add_generation_prompt}
            return self._template.render({**self._values, **asked, "messages": [dict(one) for one in messages]})
        except Exception as error:  # a template is a program: its expressions can raise anything
            raise _broken(error) from None

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the token ids of a rendered conversation; the template wrote all special tokens, so none is added."""
        return tokenizer.encode(text)


class _GenerationBlock(Extension):
    """Renders `{% generation %}` blocks as their content; they mark the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _broken(error: BaseException) -> BundleError:
    line = getattr(error, "lineno", None)
    where = f", line {line}" if line else ""
    return BundleError(
        f"The bundle's chat template can't be used: manifest.json, field 'chat_template'{where} "
        f"({str(error) or type(error).__name__}). Export the bundle again with a working template."
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models don't see in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
