"""Fits LaMP's prompts (Salemi et al., 2024, section 3) into a token limit: items first, truncated to equal shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalization.answering.token_counter import TokenCounter
from personalization.lamp.tasks import PromptTemplate

SEPARATOR_TOKENS = 2
"""Assumed cost of joining two items."""

_INPUT_TENTHS = 6


def fit_prompt(
    template: PromptTemplate,
    question: str,
    items: Sequence[Mapping[str, str]],
    tokens: TokenCounter,
    max_length: int,
) -> str:
    """Build a prompt of profile items and a question's input.

    The input may take up to 60 % of the length. The rest, minus two tokens per separator, is divided equally among the
    items. The field that the template names is truncated to the item's share minus the item's other words; unused
    tokens go to the next item. If an item's other words exceed its share, the input's part is lowered by a tenth of the
    length. If even that does not help at zero, the prompt is the input alone. A prompt that is still too long is
    truncated.

    Args:
        template: template of the task.
        question: the question's input.
        items: fields of the profile items to show, best first; empty for no personalization.
        tokens: token counter of the model.
        max_length: maximum number of tokens in the prompt, without special tokens and chat template.

    Raises:
        DataError: the question does not have the task's form.
    """
    asked = tokens.count(question)
    for tenths in range(_INPUT_TENTHS, -1, -1):
        shown = _fitted(template, items, tokens, max_length - min(asked, max_length * tenths // 10))
        if shown is not None:
            return tokens.cut(template.assemble(shown, question), max_length)
    return tokens.cut(question, max_length)


def _fitted(
    template: PromptTemplate, items: Sequence[Mapping[str, str]], tokens: TokenCounter, room: int
) -> list[str] | None:
    """Truncate the items' texts to `room` tokens; None if that is impossible."""
    share = (room - SEPARATOR_TOKENS * (len(items) - 1)) // max(len(items), 1)
    shown, unused = [], 0
    for item in items:
        most = share + unused - tokens.count(template.show({**item, template.cut: ""}))
        if most < 0:
            return None
        text = tokens.cut(item[template.cut], most)
        unused = most - tokens.count(text)
        shown.append(template.show({**item, template.cut: text}))
    return shown
