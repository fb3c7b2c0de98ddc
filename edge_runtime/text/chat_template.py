"""Renders a model's own chat template: a conversation becomes the one text that the model was trained to continue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from jinja2.parser import Parser

Message = Mapping[str, str]


class ChatTemplate:
    """A Jinja chat template, rendered in a sandbox with the names that Hugging Face templates expect.

    The template comes with the bundle and sees private text, but it is a pure function of its input: the sandbox
    gives it no files, no modules and no way to change what it is handed.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """Compile the template.

        Args:
            source: Jinja source, `chat_template` of the manifest.
            bos_token: what the template's `bos_token` stands for.
            eos_token: what the template's `eos_token` stands for.

        Raises:
            BundleError: it is not a valid template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, LoopControlExtension]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise _broken(error) from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Render a conversation.

        Args:
            messages: each with `role` ("system", "user" or "assistant") and `content`, oldest first.
            add_generation_prompt: end with the words that make the model answer.

        Returns:
            The text to tokenize without adding special tokens; the template wrote them.

        Raises:
            BundleError: the template fails on this conversation, or refuses it.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program: it can fail with whatever its expressions raise
            raise _broken(error) from None


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; to us it is its content and nothing more."""

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
    # Jinja's own filter escapes HTML, which no model has seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
