"""Selects the examples of each optimizer step, and groups examples into passes or packs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from personalization.models.examples import Example


def steps_of_epoch(count: int, batch: int, order: random.Random) -> Iterator[list[int]]:
    """Yield the example indices of each optimizer step of one shuffled epoch; the last step may be smaller."""
    shuffled = order.sample(range(count), count)
    for start in range(0, count, batch):
        yield shuffled[start : start + batch]


def passes_of(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """Group examples of similar length into passes, to reduce padding.

    Args:
        examples: any number of examples.
        most_tokens: maximum number of tokens in a pass, with padding; a longer example gets its own pass.
    """
    passes: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: (example.length, example.prompt, example.answer)):
        # The order is ascending, so this example is the longest of its pass.
        if passes and example.length * (len(passes[-1]) + 1) <= most_tokens:
            passes[-1].append(example)
        else:
            passes.append([example])
    return passes


def packs_of(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """Pack examples tightly by first-fit decreasing: longest first, each into the first pack with room.

    Args:
        examples: any number of examples.
        most_tokens: maximum number of tokens in a pack; a longer example gets its own pack.
    """
    packs: list[list[Example]] = []
    filled: list[int] = []
    for example in sorted(examples, key=lambda example: (-example.length, example.prompt, example.answer)):
        fits = (index for index, tokens in enumerate(filled) if tokens + example.length <= most_tokens)
        if (place := next(fits, None)) is None:
            packs.append([example])
            filled.append(example.length)
        else:
            packs[place].append(example)
            filled[place] += example.length
    return packs


def rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the factor on the highest learning rate in a step.

    Args:
        schedule: "constant", "linear" or "cosine".
        step: number of the step, from 0.
        steps: total number of steps.
        warmup: share of the steps in which the rate rises.

    Returns:
        Above 0 in every step, 1 in the last step of the warm-up and the one after it.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    over = (step - rising) / (steps - rising)
    return 1.0 - over if schedule == "linear" else (1.0 + math.cos(math.pi * over)) / 2.0
