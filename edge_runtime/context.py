"""What is public and what is private, as two types with nothing in common."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class PublicInstruction:
    """What the user asks, as they would ask any chatbot; the only text that the cloud ever gets."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"a public instruction is text, not {type(self.text).__name__}")
        if not self.text.strip():
            raise RequestError("The instruction is empty: field 'instruction'. Say what should be written.")


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One text the user wrote before: `title` is the task it was written for."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class PrivateContext:
    """What only the device may see: the user's profile and past texts. Its repr hides the content from logs."""

    profile: str = ""
    history: tuple[HistoryItem, ...] = ()

    def __repr__(self) -> str:
        return f"PrivateContext(<{len(self.profile)} characters of profile, {len(self.history)} past texts>)"

    __str__ = __repr__


def joined(first: PrivateContext, second: PrivateContext) -> PrivateContext:
    """All that either holds, each text once."""
    profiles = dict.fromkeys(profile for profile in (first.profile, second.profile) if profile)
    return PrivateContext("\n".join(profiles), tuple(dict.fromkeys((*first.history, *second.history))))
