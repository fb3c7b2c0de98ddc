"""Converts tasks and answers to token ids exactly as the edge runtime does: its prompt, the model's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import ContextOverflowError
from edge_runtime.text.prompt import Prompt, build_prompt
from edge_runtime.text.prompt_form import PromptForm, prompt_form
from edge_runtime.text.tokenizer import Tokenizer
from personalization.errors import TrainingError
from personalization.users.data import Pair, context_of

if TYPE_CHECKING:
    from export.model.weights import TokenizerAssets

# An encoder's input is the user's message itself.
_NO_TEMPLATE = "{{ messages[0]['content'] }}"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that follows it.

    Attributes:
        prompt: token ids; for encoder-decoder models the encoder's input.
        answer: token ids to learn; all but the last `ending` of them are the user's own text.
        ending: number of tokens at the end that only mark the end; 0 if the answer was truncated.
        cut: whether task or answer was truncated to fit.
        dropped: number of context items that did not fit.
    """

    prompt: tuple[int, ...] = field(repr=False)
    answer: tuple[int, ...] = field(repr=False)
    ending: int
    cut: bool = False
    dropped: int = 0

    @property
    def length(self) -> int:
        """Number of tokens in prompt and answer."""
        return len(self.prompt) + len(self.answer)


class ExampleWriter:
    """Writes examples in one model's format."""

    def __init__(self, assets: TokenizerAssets, *, seq2seq: bool) -> None:
        """Prepare a model's format.

        Args:
            assets: the model's tokenizer.
            seq2seq: whether it is an encoder-decoder model. It has no chat template; its tokenizer adds special tokens.

        Raises:
            BundleError: the chat template is broken.
        """
        self.tokenizer = Tokenizer(HFTokenizer.from_str(assets.json))
        template = _NO_TEMPLATE if seq2seq else assets.chat_template
        self.template: PromptForm = prompt_form(template, assets.template_tokens)
        self._seq2seq = seq2seq
        self._added = self.tokenizer.backend.num_special_tokens_to_add(is_pair=False) if seq2seq else 0
        self._ending = () if seq2seq else self._end_of_turn(assets.stop_token_ids)

    @property
    def added_tokens(self) -> int:
        """Number of special tokens that the tokenizer adds to a prompt; 0 for decoders, whose template writes them."""
        return self._added

    def prompt(self, message: str) -> tuple[int, ...]:
        """Return the token ids of a complete message to answer, exactly as the edge runtime feeds it."""
        built = build_prompt(self.tokenizer, self.template, PublicInstruction(message), None, None, _ENDLESS)
        return self._fed(built)

    def answered(self, message: str, answer: str, most: int) -> Example:
        """Make an example of a complete message and its answer; over `most` tokens, truncate it without end marker."""
        ids = self._answer(answer)
        cut = len(ids) > most
        ending = 0 if cut else self._added or len(self._ending)
        return Example(self.prompt(message), ids[:most], ending, cut)

    def write(self, pair: Pair, context: PrivateContext | None, max_length: int, outline: str | None = None) -> Example:
        """Make an example.

        The answer may take half of the length, plus what the prompt leaves free. A longer answer is truncated, without
        an end marker. A task that is too long for the remaining room is truncated. Of a context, history is dropped
        first.

        Args:
            pair: task and answer, neither empty.
            context: context for the prompt; None for the task alone.
            max_length: maximum number of tokens of both.
            outline: points to follow, for the prompt; None for none.

        Raises:
            TrainingError: profile, outline and template leave no room for the task.
        """
        answer = self._answer(pair.answer)
        # The prompt gets its minimum length, up to half of the total.
        least = self._length(pair.task, PrivateContext(context.profile) if context else None, outline)
        room = max(max_length // 2, max_length - least)
        cut = len(answer) > room
        if cut:
            answer = answer[:room]
        prompt, shortened, dropped = self._prompt(pair.task, context, max_length - len(answer), outline)
        ending = 0 if cut else self._added or len(self._ending)
        return Example(prompt, answer, ending, cut or shortened, dropped)

    def write_all(
        self,
        pairs: Sequence[Pair],
        max_length: int,
        *,
        profile: str = "",
        history: Sequence[Pair] | None = None,
    ) -> tuple[Example, ...]:
        """Make examples of pairs, each with the history's other pairs as context; None means the task alone.

        Raises:
            TrainingError: see `write`.
        """
        examples = []
        for pair in pairs:
            others = None if history is None else context_of(profile, [other for other in history if other != pair])
            examples.append(self.write(pair, others, max_length))
        return tuple(examples)

    def _answer(self, text: str) -> tuple[int, ...]:
        if self._seq2seq:
            return tuple(self.tokenizer.backend.encode(text).ids)
        return (*self.tokenizer.encode(text), *self._ending)

    def _length(self, task: str, context: PrivateContext | None, outline: str | None) -> int:
        """Number of prompt tokens with the full task and without history."""
        message = build_prompt(self.tokenizer, self.template, PublicInstruction(task), context, outline, _ENDLESS)
        return len(message.token_ids) + self._added

    def _prompt(
        self, task: str, context: PrivateContext | None, room: int, outline: str | None
    ) -> tuple[tuple[int, ...], bool, int]:
        """Return the ids of a prompt that fits, whether its task was truncated, and how much history was dropped."""
        task_ids = self.tokenizer.encode(task)
        kept, shortened = len(task_ids), task
        while True:
            try:
                built = build_prompt(
                    self.tokenizer, self.template, PublicInstruction(shortened), context, outline, room - self._added
                )
            except ContextOverflowError:
                bare = PrivateContext(context.profile) if context else None
                kept -= max(self._length(shortened, bare, outline) - room, 1)
                # A cut inside a character decodes to a replacement character.
                shortened = self.tokenizer.decode(task_ids[: max(kept, 0)], skip_special_tokens=False).rstrip("\ufffd")
                if not shortened.strip():
                    raise TrainingError(
                        f"Profile and prompt alone take more than the {room:,} tokens that the answer leaves them. "
                        "Raise `max_length`."
                    ) from None
                continue
            return self._fed(built), shortened is not task, len(built.dropped)

    def _fed(self, built: Prompt) -> tuple[int, ...]:
        return tuple(self.tokenizer.backend.encode(built.text).ids) if self._seq2seq else built.token_ids

    def _end_of_turn(self, stops: Sequence[int]) -> tuple[int, ...]:
        """Return the token that ends a turn: the first stop token after an answer in the template."""
        turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
        opened = self.template.render(turns[:1])
        whole = self.template.render(turns, add_generation_prompt=False)
        # If a template rewrites earlier turns, the end can't be found there.
        after = self.tokenizer.encode(whole.removeprefix(opened)) if whole.startswith(opened) else []
        ends = [token for token in after if token in stops] or list(stops)
        return tuple(ends[:1])


_ENDLESS = 1 << 40
