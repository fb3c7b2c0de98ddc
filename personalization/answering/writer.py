"""Who writes the answers to prompts: a Hugging Face model or a bundle on the edge runtime, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from personalization.answering.token_counter import TokenCounter
from personalization.errors import SettingsError


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """What a writer is made of; it travels to other processes.

    Attributes:
        source: a model directory in Hugging Face format, or a bundle.
        identity: digest of its weights.
        is_bundle: which of both it is.
        backend: of the bundle, "onnx" or "executorch"; None takes its first.
        adapters: directory of users' adapters, as `adapter train` writes them for a model, and `export adapter` for a
            bundle; None answers everybody with the base alone.
        most_tokens: of an answer.
        beams: of the search (1 is greedy).
        threads: of the processor.
        device: of a model: "cpu", "cuda" or "cuda:1".
        one_line: an answer ends with its first line that has text, as all of LaMP's do: chat models write on.
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
            ("max-new-tokens", self.most_tokens),
            ("beams", self.beams),
            ("threads", self.threads),
        ):
            if value < 1:
                raise SettingsError(f"--{name} must be at least 1, not {value}.")
        if self.is_bundle and self.beams > 1:
            raise SettingsError(f"The edge runtime writes greedily: leave out --beams {self.beams} for a --bundle.")
        if self.is_bundle and self.device != "cpu":
            raise SettingsError("A bundle runs on the processor. Leave out --device, or name a --model.")
        if not self.is_bundle and self.backend is not None:
            raise SettingsError("--backend belongs to --bundle. Leave it out for a --model.")


class AnswerWriter(Protocol):
    """Writes answers; what it writes does not depend on what it wrote before."""

    @property
    def tokens(self) -> TokenCounter:
        """Counts in the model's tokens."""
        ...

    @property
    def added_tokens(self) -> int:
        """How many tokens of a prompt's length the model takes for itself."""
        ...

    def write(self, prompts: Sequence[str], user: str | None) -> list[str]:
        """Answer prompts, each for itself.

        Args:
            prompts: at least one; those of about the same length waste least.
            user: whose adapter to use; None for the base alone.

        Returns:
            An answer for each, without white space around it.

        Raises:
            CogenesisError: the user has no adapter that fits, or a prompt is too long for the model.
        """
        ...


def first_line(text: str) -> str:
    """The first line that has text, without white space around it; "" where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
