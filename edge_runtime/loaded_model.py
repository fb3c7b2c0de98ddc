"""Holds a bundle's model, ready to write: decoders, tokenizer, prompt template and the user's adapter."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.context import PrivateContext, PublicInstruction, joined
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.errors import PolicyError
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.loop import Ending
from edge_runtime.privacy.gate import Policy
from edge_runtime.text.prompt import Prompt, build_prompt
from edge_runtime.text.prompt_form import PromptForm
from edge_runtime.text.tokenizer import Tokenizer


@dataclass(slots=True)
class LoadedModel:
    """The parts of a bundle that an answer needs.

    Attributes:
        manifest: the bundle's manifest.
        tokenizer: the model's tokenizer.
        template: the form of the model's prompts.
        decoder: decoder of the sequence with the private context; keeps the KV cache of the last prompt.
        known: the ids that the model may write: those that have a token.
        adapter: the adapter in use.
    """

    manifest: Manifest
    tokenizer: Tokenizer
    template: PromptForm
    decoder: Decoder
    known: KnownTokens
    adapter: Adapter | None = None
    _without: Decoder | None = None

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use another adapter from now on; None uses no adapter."""
        self.decoder.use_adapter(adapter)
        self.adapter = adapter

    def prompted(self, prompt: tuple[int, ...]) -> PromptedDecoder:
        """Return the decoder, ready to continue a prompt."""
        return PromptedDecoder(self.decoder, prompt, self.known)

    def prompted_without(self, prompt: tuple[int, ...]) -> PromptedDecoder:
        """Return the decoder of the sequence without the private context, with the adapter in use."""
        self._without = self._without or self.decoder.fork()
        self._without.use_adapter(self.adapter)
        return PromptedDecoder(self._without, prompt, self.known)

    def prompt(
        self, instruction: PublicInstruction, context: PrivateContext | None, outline: str | None, max_new_tokens: int
    ) -> Prompt:
        """Build the prompt for an answer of up to `max_new_tokens`; see `edge_runtime.text.prompt.build_prompt`.

        Raises:
            ContextOverflowError: profile and instruction don't fit.
        """
        room = self.decoder.context_length - max_new_tokens
        return build_prompt(self.tokenizer, self.template, instruction, context, outline, max_tokens=room)

    def ending(self, limit: int) -> Ending:
        """Return where an answer ends: at the model's stop tokens, or after `limit` tokens."""
        return Ending(limit, self.manifest.tokenizer.stop_token_ids)

    def unsaid(self, context: PrivateContext | None, policy: Policy) -> PrivateContext | None:
        """Return the texts to keep from the cloud: the context, and the texts that the adapter was trained on.

        Raises:
            PolicyError: the adapter does not record its training texts, so they can't be kept from the cloud.
        """
        if self.adapter is None or policy is not Policy.GUARDED:
            return context
        if self.adapter.learned is None:
            raise PolicyError(
                f"The adapter '{self.adapter.name}' does not say what it was trained on, so the policy guarded can't "
                "keep that from the cloud. Export it again with the text that it learned, or use `policy` open."
            )
        return joined(context or PrivateContext(), self.adapter.learned)
