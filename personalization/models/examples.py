"""Makes token ids out of tasks and answers, just as the edge runtime feeds them: its prompt, the model's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import ContextOverflowError
from edge_runtime.text.chat_template import ChatTemplate
from edge_runtime.text.prompt import Prompt, build_prompt
from edge_runtime.text.tokenizer import Tokenizer
from personalization.errors import SettingsError, TrainingError
from personalization.users.data import Pair, context_of

if TYPE_CHECKING:
    from export.model.weights import TokenizerAssets

# What an encoder is fed is the user's message itself.
_NO_TEMPLATE = "{{ messages[0]['content'] }}"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that follows it.

    Attributes:
        prompt: token ids; for encoder-decoder models the encoder's input.
        answer: token ids to learn; all but the last `ending` of them are the user's own text.
        ending: how many tokens at the end only mark the end; 0 where the answer was cut.
        cut: whether task or answer were cut to fit.
        dropped: items of the context that did not fit.
    """

    prompt: tuple[int, ...] = field(repr=False)
    answer: tuple[int, ...] = field(repr=False)
    ending: int
    cut: bool = False
    dropped: int = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)


class ExampleWriter:
    """Writes examples in the form of one model."""

    def __init__(self, assets: TokenizerAssets, *, seq2seq: bool, name: str) -> None:
        """Prepare a model's form.

        Args:
            assets: its tokenizer.
            seq2seq: whether it is an encoder-decoder model: no chat template, the tokenizer's own special tokens.
            name: of the model, for messages.

        Raises:
            SettingsError: a model with a decoder alone and no chat template: the edge runtime has no prompt for it.
            BundleError: the chat template is broken.
        """
        if not seq2seq and not assets.chat_template:
            raise SettingsError(
                f"The model has no chat template, so the edge runtime has no prompt for it: {name}. Use an "
                "instruction-tuned model, or add a chat_template.jinja to its directory."
            )
        self.tokenizer = Tokenizer(HFTokenizer.from_str(assets.json))
        self.template = ChatTemplate(
            _NO_TEMPLATE if seq2seq else assets.chat_template, bos_token=assets.bos_token, eos_token=assets.eos_token
        )
        self._seq2seq = seq2seq
        self._added = self.tokenizer.backend.num_special_tokens_to_add(is_pair=False) if seq2seq else 0
        self._ending = () if seq2seq else self._end_of_turn(assets.stop_token_ids)

    @property
    def added_tokens(self) -> int:
        """Special tokens that the tokenizer adds to a prompt; 0 for decoders, where the template writes them."""
        return self._added

    def prompt(self, message: str) -> tuple[int, ...]:
        """Token ids of a message that the model is to answer, whole, just as the edge runtime feeds it."""
        built = build_prompt(self.tokenizer, self.template, PublicInstruction(message), None, None, _ENDLESS)
        return self._fed(built)

    def answered(self, message: str, answer: str, most: int) -> Example:
        """Make an example of a message, whole, and its answer; past `most` tokens that is cut, without an end mark."""
        ids = self._answer(answer)
        cut = len(ids) > most
        ending = 0 if cut else self._added or len(self._ending)
        return Example(self.prompt(message), ids[:most], ending, cut)

    def write(self, pair: Pair, context: PrivateContext | None, max_length: int, outline: str | None = None) -> Example:
        """Make an example.

        The answer may have half of the length, and what the prompt leaves. A longer one is cut, without a mark of its
        end; a task that is longer than what is left loses its end; of a context, history is dropped first.

        Args:
            pair: task and answer, neither empty.
            context: for the prompt; None for the task alone.
            max_length: most tokens of both.
            outline: points to follow, for the prompt; None for none.

        Raises:
            TrainingError: profile, outline and the prompt's form alone leave no room for the task.
        """
        answer = self._answer(pair.answer)
        # What the prompt needs at the very least, it may have, up to its half.
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
        """Make examples of pairs, each with the history's other pairs as context; for the task alone where it is None.

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
        """Tokens of the prompt with the whole task and none of the history."""
        message = build_prompt(self.tokenizer, self.template, PublicInstruction(task), context, outline, _ENDLESS)
        return len(message.token_ids) + self._added

    def _prompt(
        self, task: str, context: PrivateContext | None, room: int, outline: str | None
    ) -> tuple[tuple[int, ...], bool, int]:
        """Token ids of a prompt that fits, whether its task was cut, and how much history is left out."""
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
                # A cut inside a character leaves a mark of what is missing.
                shortened = self.tokenizer.decode(task_ids[: max(kept, 0)], skip_special_tokens=False).rstrip("\ufffd")
                if not shortened.strip():
                    raise TrainingError(
                        f"Profile and prompt alone take more than the {room:,} tokens that the answer leaves them. "
                        "Raise --max-length."
                    ) from None
                continue
            return self._fed(built), shortened is not task, len(built.dropped)

    def _fed(self, built: Prompt) -> tuple[int, ...]:
        return tuple(self.tokenizer.backend.encode(built.text).ids) if self._seq2seq else built.token_ids

    def _end_of_turn(self, stops: Sequence[int]) -> tuple[int, ...]:
        """What the model writes when its answer is over: the first token after it, in the template, that ends one."""
        turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
        opened = self.template.render(turns[:1])
        whole = self.template.render(turns, add_generation_prompt=False)
        # Templates that rewrite what came before leave no such end to be seen.
        after = self.tokenizer.encode(whole.removeprefix(opened)) if whole.startswith(opened) else []
        ends = [token for token in after if token in stops] or list(stops)
        return tuple(ends[:1])


_ENDLESS = 1 << 40
