"""How a model is asked: with its chat template, or in plain text if it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.errors import RequestError
from edge_runtime.text.chat_template import ChatTemplate, Message
from edge_runtime.text.tokenizer import Tokenizer


class PromptForm(Protocol):
    """Turns a conversation into the text and the tokens that a model continues."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool | None = None) -> str:
        """Return the conversation as text.

        Args:
            messages: each with `role` ("system", "user" or "assistant") and `content`, oldest first.
            add_generation_prompt: end with the text that makes the model answer; None takes the form's own choice.

        Raises:
            BundleError: a template fails on this conversation, or rejects it.
        """
        ...

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the token ids of a rendered conversation."""
        ...


class PlainForm:
    """The form for base models: the texts of the conversation, with a blank line after each.

    The tokenizer's own first tokens, such as BOS, come before it, as they did in the model's training.
    """

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool | None = None) -> str:  # noqa: ARG002
        """See `PromptForm.render`."""
        return "".join(f"{message['content']}\n\n" for message in messages)

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """See `PromptForm.encode`."""
        return [*tokenizer.first_tokens, *tokenizer.encode(text)]


def prompt_form(
    chat_template: str, special_tokens: Mapping[str, Any], variables: Mapping[str, Any] | None = None
) -> PromptForm:
    """Return the form of a model's prompts.

    Args:
        chat_template: Jinja source; "" for a model without one.
        special_tokens: the template's special tokens by name, such as `bos_token`.
        variables: the template's variables by name, such as `enable_thinking`.

    Raises:
        BundleError: the template is not valid.
        RequestError: the template does not use a variable.
    """
    if chat_template:
        return ChatTemplate(chat_template, special_tokens, variables)
    if variables:
        raise RequestError(f"The model has no chat template, so it has no template variable '{next(iter(variables))}'.")
    return PlainForm()


def prompt_form_of(manifest: Manifest, variables: Mapping[str, Any] | None = None) -> PromptForm:
    """Return the form of a bundle's prompts.

    Args:
        manifest: the bundle's manifest.
        variables: template variables that replace or join those of the bundle.

    Raises:
        BundleError: the bundle's template is not valid.
        RequestError: the template does not use a variable.
    """
    together = {**manifest.template_variables, **(variables or {})}
    return prompt_form(manifest.chat_template, manifest.tokenizer.template_tokens, together)
