"""Which examples an optimizer step takes, and which of them go through the model together."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from personalization.models.examples import Example


def steps_of_epoch(count: int, batch: int, order: random.Random) -> Iterator[list[int]]:
    """Indices of the examples of each optimizer step of one pass over them, shuffled; the last step may be smaller."""
    shuffled = order.sample(range(count), count)
    for start in range(0, count, batch):
        yield shuffled[start : start + batch]


def passes_of(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """Put examples of about the same length together, so that little is padding.

    Args:
        examples: any.
        most_tokens: of a pass, padding included; an example that is longer goes alone.
    """
    passes: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: (example.length, example.prompt, example.answer)):
        # Sorted, so that this one is the longest of its pass.
        if passes and example.length * (len(passes[-1]) + 1) <= most_tokens:
            passes[-1].append(example)
        else:
            passes.append([example])
    return passes


def packs_of(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """Put examples together so that few tokens of a pack stay free: the longest first, each where it first fits.

    Args:
        examples: any.
        most_tokens: of a pack; an example that is longer has one of its own.
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
    """What the highest learning rate is multiplied by in a step.

    Args:
        schedule: "constant", "linear" or "cosine".
        step: from 0.
        steps: in all.
        warmup: share of them in which the rate rises.

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
