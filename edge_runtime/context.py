"""Separates public from private data by two unrelated types."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class PublicInstruction:
    """The user's request, as they would send it to any chatbot; the only text from the user that the cloud receives."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"a public instruction is text, not {type(self.text).__name__}")
        if not self.text.strip():
            raise RequestError("The instruction is empty: field 'instruction'. Say what should be written.")


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One text that the user wrote before; `title` is the task that it was written for."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class PrivateContext:
    """The user's profile and past texts, which only the device may see. Its repr keeps the content out of logs."""

    profile: str = ""
    history: tuple[HistoryItem, ...] = ()

    def __repr__(self) -> str:
        return f"PrivateContext(<{len(self.profile)} characters of profile, {len(self.history)} past texts>)"

    __str__ = __repr__


def joined(first: PrivateContext, second: PrivateContext) -> PrivateContext:
    """Merge two contexts; each text is kept once."""
    profiles = dict.fromkeys(profile for profile in (first.profile, second.profile) if profile)
    return PrivateContext("\n".join(profiles), tuple(dict.fromkeys((*first.history, *second.history))))
