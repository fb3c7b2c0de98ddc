"""Defines an answer writer: a Hugging Face model or a bundle on the edge runtime, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from personalization.answering.token_counter import TokenCounter
from personalization.errors import SettingsError


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """The parameters of a writer; they are sent to other processes.

    Attributes:
        source: a model directory in Hugging Face format, or a bundle.
        identity: digest of its weights.
        is_bundle: whether `source` is a bundle.
        backend: the bundle's backend, "onnx" or "executorch"; None takes its first.
        adapters: directory of users' adapters, written by `adapter train` for a model and by `export adapter` for a
            bundle; None answers every user with the base alone.
        most_tokens: maximum number of tokens per answer.
        beams: number of beams (1 is greedy).
        threads: number of CPU threads.
        device: device of a model: "cpu", "cuda" or "cuda:1".
        one_line: end an answer after its first line with text, as in LaMP; chat models would write on.
    """

    source: Path
    identity: str
    is_bundle: bool
    backend: str | None = None
    adapters: Path | None = None
    most_tokens: int = 128
    beams: int = 4
    threads: int = 2
    device: str = "cpu"
    one_line: bool = True

    def __post_init__(self) -> None:
        for name, value in (
            ("most_tokens", self.most_tokens),
            ("beams", self.beams),
            ("threads", self.threads),
        ):
            if value < 1:
                raise SettingsError(f"`{name}` must be at least 1, not {value}.")
        if self.is_bundle and self.beams > 1:
            raise SettingsError(
                f"The edge runtime writes greedily. Set `beams` to 1 for a bundle, not to {self.beams}."
            )
        if self.is_bundle and self.device != "cpu":
            raise SettingsError("A bundle runs on the processor. Leave out `device`, or use a model directory.")
        if not self.is_bundle and self.backend is not None:
            raise SettingsError("`backend` is for a bundle. Leave it out for a model directory.")


class AnswerWriter(Protocol):
    """Writes answers; each one is independent of those written before."""

    @property
    def tokens(self) -> TokenCounter:
        """Counts in the model's tokens."""
        ...

    @property
    def added_tokens(self) -> int:
        """How many tokens of a prompt's length the model needs for itself."""
        ...

    def write(self, prompts: Sequence[str], user: str | None) -> list[str]:
        """Answer each prompt separately.

        Args:
            prompts: at least one; prompts of similar length waste the least padding.
            user: whose adapter to use; None for the base alone.

        Returns:
            One answer per prompt, without surrounding white space.

        Raises:
            CogenesisError: the user has no adapter that fits, or a prompt is too long for the model.
        """
        ...


def first_line(text: str) -> str:
    """Return the first line with text, without surrounding white space, or "" if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
