"""Builds the edge model's prompt from private context and public instruction, within a token limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import BundleError, ContextOverflowError
from edge_runtime.text.prompt_form import PromptForm
from edge_runtime.text.relevance import rank
from edge_runtime.text.tokenizer import Tokenizer

# Same sections as CoGenesis (Zhang et al., ACL 2024), so models tuned on its data can be used.
TASK_WITH_CONTEXT = (
    "You are a personal writing assistant. Write as the author of the texts below would, in the same style and tone. "
    "Be thorough and informative, and bring in what the user's profile tells you where it fits the task. "
    "Give an answer with insight and of high quality, one that the user will be glad to have."
)
TASK_WITH_OUTLINE = "Points that the text may follow:"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt within the token limit.

    Attributes:
        token_ids: the decoder's input.
        text: the prompt as text, including the chat template.
        kept: indices of the history items in the prompt, ascending.
        dropped: indices of the history items left out, ascending.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    text: str = field(repr=False)
    kept: tuple[int, ...]
    dropped: tuple[int, ...]


def build_prompt(
    tokenizer: Tokenizer,
    template: PromptForm,
    instruction: PublicInstruction,
    context: PrivateContext | None,
    outline: str | None,
    max_tokens: int,
) -> Prompt:
    """Build the prompt of the edge model.

    With context, the prompt is one user message in CoGenesis' format. Without context it is only the instruction, as
    in the cloud's prompt. History items are dropped until the prompt fits, the least relevant to the instruction first.

    Args:
        tokenizer: tokenizer of the edge model.
        template: chat template of the edge model, or its plain form.
        instruction: the writing task.
        context: the private context; None or an empty context for none.
        outline: points to follow (sketch mode).
        max_tokens: maximum length of the prompt; leave room for the answer.

    Raises:
        ContextOverflowError: profile, instruction and outline alone exceed `max_tokens`.
        BundleError: the chat template fails, or gives an empty prompt.
    """
    context = context or PrivateContext()

    def build(kept: Sequence[int]) -> Prompt:
        content = user_message(instruction, context, outline, kept)
        text = template.render([{"role": "user", "content": content}])
        chosen = set(kept)
        dropped = tuple(i for i in range(len(context.history)) if i not in chosen)
        return Prompt(tuple(template.encode(tokenizer, text)), text, tuple(sorted(kept)), dropped)

    shortest = build(())
    if not shortest.token_ids:
        raise BundleError(
            "The bundle's chat template gives an empty prompt: manifest.json, field 'chat_template'. Export the bundle "
            "again with a working template."
        )
    room = max_tokens - len(shortest.token_ids)
    if room < 0:
        raise _overflow(tokenizer, instruction, context, outline, len(shortest.token_ids), max_tokens)

    sizes = _ItemSizes(tokenizer, context.history)
    everything = range(len(context.history))
    if sizes.how_many_fit(everything, room) == len(everything):
        whole = build(everything)
        if len(whole.token_ids) <= max_tokens:
            return whole
    order = rank(instruction.text, [f"{item.title}\n{item.text}" for item in context.history])
    count, best = sizes.how_many_fit(order, room), shortest
    # Tokens that span two items make the estimate inexact: step down until the prompt fits, then up while it does.
    while count > 0 and best is shortest:
        attempt = build(order[:count])
        if len(attempt.token_ids) <= max_tokens:
            best = attempt
        else:
            count -= 1
    while count < len(order):
        attempt = build(order[: count + 1])
        if len(attempt.token_ids) > max_tokens:
            break
        best, count = attempt, count + 1
    return best


def user_message(
    instruction: PublicInstruction, context: PrivateContext, outline: str | None, kept: Sequence[int]
) -> str:
    """Build the user's message to the edge model, before the chat template.

    Args:
        instruction: the writing task.
        context: profile and history.
        outline: points to follow, or None.
        kept: indices of the history items to include, in the order of the history.

    Returns:
        The message. Without profile, history and outline it is the instruction, byte for byte.
    """
    task = instruction.text
    if outline and outline.strip():
        task = f"{task}\n\n{TASK_WITH_OUTLINE}\n{outline.strip()}"
    sections = []
    if context.profile.strip():
        sections.append(f"## User Profile\n{context.profile.strip()}")
    if kept:
        items = "\n\n".join(_item_text(context.history[i]) for i in sorted(kept))
        sections.append(f"## User Writing History\n{items}")
    if not sections:
        return task
    return "\n\n".join([TASK_WITH_CONTEXT, *sections, f"## Task\n{task}\n"])


def _item_text(item: HistoryItem) -> str:
    return f"Task: {item.title.strip()}\nContent: {item.text.strip()}"


class _ItemSizes:
    """Token counts of history items, computed on first use and cached."""

    def __init__(self, tokenizer: Tokenizer, history: Sequence[HistoryItem]) -> None:
        self._tokenizer = tokenizer
        self._history = history
        self._sizes: dict[int, int] = {}

    def _size(self, index: int) -> int:
        if index not in self._sizes:
            self._sizes[index] = len(self._tokenizer.encode(f"\n\n{_item_text(self._history[index])}"))
        return self._sizes[index]

    def how_many_fit(self, order: Sequence[int], room: int) -> int:
        """Return how many items, taken in this order, fit into about `room` tokens."""
        for count, index in enumerate(order):
            room -= self._size(index)
            if room < 0:
                return count
        return len(order)


def _overflow(
    tokenizer: Tokenizer,
    instruction: PublicInstruction,
    context: PrivateContext,
    outline: str | None,
    needed: int,
    max_tokens: int,
) -> ContextOverflowError:
    parts = {"profile": context.profile, "instruction": instruction.text, "outline": outline or ""}
    counts = {name: len(tokenizer.encode(text)) for name, text in parts.items() if text}
    longest = max(counts, key=lambda name: counts[name])
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return ContextOverflowError(
        f"The prompt doesn't fit, even without any history: it needs {needed:,} tokens ({listed}, the rest is the "
        f"prompt's form), and there is room for {max(max_tokens, 0):,}. Shorten the {longest}, ask for a shorter "
        "answer, or use a model with a longer context."
    )
