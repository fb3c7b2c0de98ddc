"""The seven tasks of LaMP (Salemi et al., 2024): which fields of a profile item are a task, and which its answer."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from personalization.user_data import Pair

_TAGS = (
    "sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, "
    "romance, thought-provoking, social commentary, violence, true story"
)
# A tweet is cut where between a tenth and a quarter of it is over.
_SHORTEST_START, _LONGEST_START = 0.10, 0.25
_WORD_START = re.compile(r"(?<=\s)\S")


@dataclass(frozen=True, slots=True)
class LampTask:
    """One task.

    Attributes:
        name: "LaMP-1" to "LaMP-7".
        instruction: what the user asks for, before the source's text.
        source: field of a profile item that the task is about.
        target: field that is the answer; None where the answer is the source's own continuation.
    """

    name: str
    instruction: str
    source: str
    target: str | None

    def pair(self, item: Mapping[str, str], seed: int) -> Pair | None:
        """Make a profile item a task and its answer.

        Args:
            item: the item's fields `source` and `target`.
            seed: where a text is cut, together with the text.

        Returns:
            None where a text is empty, or too short to be cut.
        """
        text = item[self.source].strip()
        start, answer = cut_text(text, seed) if self.target is None else (text, item[self.target].strip())
        return Pair(f"{self.instruction} {start}", answer) if start and answer else None


LAMP_TASKS = {
    task.name: task
    for task in (
        LampTask("LaMP-1", "Write the abstract of a paper with this title:", "title", "abstract"),
        LampTask(
            "LaMP-2", f"Choose the tag that fits a film best. The tags are: {_TAGS}. The film:", "description", "tag"
        ),
        LampTask("LaMP-3", "Say how many stars, from 1 to 5, come with this review:", "text", "score"),
        LampTask("LaMP-4", "Write a headline for this article:", "text", "title"),
        LampTask("LaMP-5", "Write a title for the paper with this abstract:", "abstract", "title"),
        LampTask("LaMP-6", "Write a subject line for this e-mail:", "text", "title"),
        LampTask("LaMP-7", "Continue this tweet:", "text", None),
    )
}


def cut_text(text: str, seed: int) -> tuple[str, str]:
    """Cut a text before a word, where 10 to 25 % of its characters are over.

    Which word, where several would do, depends on seed and text alone. If none lies there, it is the first after that,
    or else the last before it.

    Returns:
        Start and rest, both stripped; ("", "") for a text of fewer than two words.
    """
    text = text.strip()
    starts = [match.start() for match in _WORD_START.finditer(text)]
    if not starts:
        return "", ""
    low, high = _SHORTEST_START * len(text), _LONGEST_START * len(text)
    inside = [start for start in starts if low <= start <= high]
    beyond = [start for start in starts if start > high]
    cut = random.Random(f"{seed}\0{text}").choice(inside) if inside else (beyond or starts[-1:])[0]
    return text[:cut].rstrip(), text[cut:]
