"""What a retriever selector reads of a candidate, in training as on the device: its prompt, or prompt and answer."""

from __future__ import annotations

from tokenizers import Tokenizer


def candidate_tokens(tokenizer: Tokenizer, prompt: str, answer: str | None, most: int) -> list[int]:
    """The token ids of a candidate.

    A prompt stands alone where nothing is generated yet (RSPG-Pre), or before the separator and the answer that was
    generated from it (RSPG-Post); special tokens are those that the tokenizer's template has for one text and for two.

    Args:
        tokenizer: the selector's, without padding and truncation of its own.
        prompt: with what the candidate's retriever found.
        answer: generated from it; None before that.
        most: tokens of the result at most. The prompt's end is cut first, and of the answer only what is longer than
            half of the room.

    Returns:
        At least one id, where the template adds any to an empty text.
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
