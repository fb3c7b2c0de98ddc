"""Lets a selector choose, question by question, by which retriever past texts get into the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.context import PrivateContext, PublicInstruction, joined
from edge_runtime.retrieval.search import StoreSearch
from edge_runtime.retrieval.selector import Candidate, Selector
from edge_runtime.text.prompt import user_message


@dataclass(frozen=True, slots=True)
class Choice:
    """A retriever, and the context that it leads to."""

    retriever: str
    context: PrivateContext


def contexts_of(
    search: StoreSearch, selector: Selector, instruction: PublicInstruction, own: PrivateContext, count: int
) -> dict[str, PrivateContext]:
    """What each of the selector's retrievers leads to.

    Args:
        search: the store.
        selector: names the retrievers.
        instruction: what is searched for.
        own: goes before what is found.
        count: past texts that each retriever finds.

    Raises:
        RequestError: the selector was trained on a retriever that is not there.
        BundleError: an encoder is damaged.
    """
    return {name: joined(own, search.context(instruction.text, name, count)) for name in selector.card.retrievers}


def choose_retriever(
    selector: Selector,
    instruction: PublicInstruction,
    contexts: Mapping[str, PrivateContext],
    write: Callable[[PrivateContext], str],
) -> Choice:
    """Have the selector choose.

    Args:
        selector: any.
        instruction: what should be written.
        contexts: what each retriever leads to.
        write: writes an answer with a context; a selector of mode post reads one a retriever.

    Raises:
        BundleError: the selector is damaged.
    """
    names, candidates = list(contexts), []
    for context in contexts.values():
        prompt = user_message(instruction, context, None, range(len(context.history)))
        candidates.append(Candidate(prompt, write(context) if selector.reads_answers else None))
    best = selector.choose(candidates)
    return Choice(names[best], contexts[names[best]])
