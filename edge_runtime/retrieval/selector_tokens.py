"""Tokenizes a retriever selector's candidate, in training and on the device: its prompt, or prompt and answer."""

from __future__ import annotations

from tokenizers import Tokenizer


def candidate_tokens(tokenizer: Tokenizer, prompt: str, answer: str | None, most: int) -> list[int]:
    """Return the token ids of a candidate.

    The input is the prompt alone (RSPG-Pre), or the prompt, a separator and the answer generated from it (RSPG-Post).
    Special tokens come from the tokenizer's template for one text or for a pair.

    Args:
        tokenizer: the selector's tokenizer, with padding and truncation off.
        prompt: prompt with the texts that the candidate's retriever found.
        answer: answer generated from the prompt; None if there is none yet.
        most: maximum tokens of the result. The end of the prompt is truncated first; the answer is truncated only if it
            exceeds half of the room.

    Returns:
        The ids; at least one if the template adds special tokens to an empty text.
    """
    room = max(most - tokenizer.num_special_tokens_to_add(answer is not None), 0)
    first = tokenizer.encode(prompt, add_special_tokens=False)
    if answer is None:
        first.truncate(room)
        return list(tokenizer.post_process(first).ids)
    second = tokenizer.encode(answer, add_special_tokens=False)
    second.truncate(max(room - len(first), room // 2))
    first.truncate(room - len(second))
    return list(tokenizer.post_process(first, second).ids)
