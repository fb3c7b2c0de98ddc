"""Fits LaMP's prompts (Salemi et al., 2024, section 3) into a number of tokens: items first, cut to equal shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalization.answering.token_counter import TokenCounter
from personalization.lamp.tasks import PromptTemplate

SEPARATOR_TOKENS = 2
"""What joining two items is taken to cost."""

_INPUT_TENTHS = 6


def fit_prompt(
    template: PromptTemplate,
    question: str,
    items: Sequence[Mapping[str, str]],
    tokens: TokenCounter,
    max_length: int,
) -> str:
    """Build a prompt of profile items and a question's input.

    The input may keep up to 60 % of the length. The rest, less two tokens a separator, is shared equally among the
    items; of each, the field that the template names is cut to the share less what the item's other words take, and
    what it leaves unused goes to the next item. Where an item's other words are more than that, the input's share falls
    by a tenth of the length, and below zero the prompt is the input alone. What is longer in the end loses its end.

    Args:
        template: of the task.
        question: the question's input.
        items: fields of the profile items to show, best first; none for no personalization.
        tokens: of the model that is asked.
        max_length: most tokens of the prompt, special ones and chat template not counted.

    Raises:
        DataError: the question is not of the task's form.
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
    """The items' texts in so many tokens; None where that is impossible."""
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
