"""Lets a selector choose, for each question, the retriever that supplies past texts for the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.context import PrivateContext, PublicInstruction, joined
from edge_runtime.retrieval.search import StoreSearch
from edge_runtime.retrieval.selector import Candidate, Selector
from edge_runtime.text.prompt import user_message


@dataclass(frozen=True, slots=True)
class Choice:
    """A retriever, and the context that it supplies."""

    retriever: str
    context: PrivateContext


def contexts_of(
    search: StoreSearch, selector: Selector, instruction: PublicInstruction, own: PrivateContext, count: int
) -> dict[str, PrivateContext]:
    """Retrieve a context with each of the selector's retrievers.

    Args:
        search: search over the store.
        selector: the selector, whose card names the retrievers.
        instruction: the query.
        own: context that precedes the retrieved texts.
        count: maximum past texts per retriever.

    Raises:
        RequestError: the selector was trained with a retriever that is missing here.
        BundleError: an encoder is damaged.
    """
    return {name: joined(own, search.context(instruction.text, name, count)) for name in selector.card.retrievers}


def choose_retriever(
    selector: Selector,
    instruction: PublicInstruction,
    contexts: Mapping[str, PrivateContext],
    write: Callable[[PrivateContext], str],
) -> Choice:
    """Let the selector choose a retriever.

    Args:
        selector: the selector.
        instruction: the writing task.
        contexts: context by retriever.
        write: generates an answer with a context; called once per retriever if the selector's mode is post.

    Raises:
        BundleError: the selector is damaged.
    """
    names, candidates = list(contexts), []
    for context in contexts.values():
        prompt = user_message(instruction, context, None, range(len(context.history)))
        candidates.append(Candidate(prompt, write(context) if selector.reads_answers else None))
    best = selector.choose(candidates)
    return Choice(names[best], contexts[names[best]])
